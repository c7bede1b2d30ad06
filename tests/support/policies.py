"""What rendered NetworkPolicies let through between the pods of a release, as Kubernetes defines them.

A connection passes if some policy lets it out of its source, or none selects that for egress, and likewise in at its
target. Addresses outside the release are told apart only as `internet` and `inside` (private ranges).
"""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

Object = dict[str, Any]
Labels = Mapping[str, str]


def allows(policies: Sequence[Object], source: Labels, target: Labels | str, port: int) -> bool:
    """Whether `source` may open TCP `port` of `target`: a pod's labels, or an address outside the release."""
    enters = isinstance(target, str) or may_enter(policies, target, source, port)
    return enters and may_leave(policies, source, target, port)


def may_leave(policies: Sequence[Object], source: Labels, target: Labels | str, port: int) -> bool:
    """Whether the egress of `source` lets the connection out."""
    return _passes(policies, "Egress", source, target, port)


def may_enter(policies: Sequence[Object], target: Labels, source: Labels | str, port: int) -> bool:
    """Whether the ingress of `target` lets the connection in."""
    return _passes(policies, "Ingress", target, source, port)


def _passes(policies: Sequence[Object], way: str, own: Labels, other: Labels | str, port: int) -> bool:
    chosen = [each["spec"] for each in policies if _selects(each["spec"]["podSelector"], own)]
    chosen = [spec for spec in chosen if way in spec["policyTypes"]]
    key, peers = ("egress", "to") if way == "Egress" else ("ingress", "from")
    rules = [rule for spec in chosen for rule in spec.get(key, [])]
    return not chosen or any(_has_port(rule, port) and _has_peer(rule.get(peers), other) for rule in rules)


def _has_port(rule: Object, port: int) -> bool:
    return "ports" not in rule or any(each["port"] == port and each["protocol"] == "TCP" for each in rule["ports"])


def _has_peer(peers: Sequence[Object] | None, other: Labels | str) -> bool:
    return not peers or any(_peers(peers, other))


def _peers(peers: Sequence[Object], other: Labels | str) -> Iterator[bool]:
    for peer in peers:
        if "ipBlock" in peer:
            block = peer["ipBlock"]
            inside = [block["cidr"]] if isinstance(other, str) and _within(other, block["cidr"]) else []
            yield bool(inside) and not any(_within(str(other), each) for each in block.get("except", []))
        elif isinstance(other, str):
            yield False
        else:
            yield "namespaceSelector" in peer or _selects(peer["podSelector"], other)


def _within(address: str, network: str) -> bool:
    return ip_address(address) in ip_network(network)


def _selects(selector: Object, labels: Labels) -> bool:
    wanted = selector.get("matchLabels", {})
    return wanted.items() <= labels.items() and all(
        _fits(each, labels) for each in selector.get("matchExpressions", [])
    )


def _fits(expression: Object, labels: Labels) -> bool:
    found = labels.get(expression["key"]) in expression["values"]
    return found if expression["operator"] == "In" else not found
