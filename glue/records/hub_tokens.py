"""Owners' tokens for the Hub, sealed. What they open is read only to be handed to a unit or a check."""

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from glue.records.database import CLOCK
from glue.records.sealing import Vault
from glue.records.tables import LIVE, HubToken, Job


def put_token(session: Session, vault: Vault, owner: str, token: str, account: str, role: str) -> HubToken:
    """Keep the owner's token, in place of an earlier one; `account` and `role` are what the Hub says of it."""
    values = {"sealed": vault.seal(owner, token), "account": account, "role": role}
    statement = insert(HubToken).values(owner=owner, **values)
    options = {"populate_existing": True}
    return session.scalars(
        statement.on_conflict_do_update(index_elements=[HubToken.owner], set_=values | {"updated_at": CLOCK}).returning(
            HubToken
        ),
        execution_options=options,
    ).one()


def get_token(session: Session, owner: str) -> HubToken | None:
    """What is known of the owner's token, sealed as it is."""
    return session.scalar(select(HubToken).where(HubToken.owner == owner))


def open_token(session: Session, vault: Vault | None, owner: str) -> str | None:
    """The owner's token, if there is one.

    Raises:
        SealError: it cannot be opened.
    """
    row = get_token(session, owner)
    return vault.open(owner, row.sealed) if row is not None and vault is not None else None


def forget_token(session: Session, owner: str) -> None:
    """Keep no token of the owner. Repeating it changes nothing."""
    session.execute(delete(HubToken).where(HubToken.owner == owner))


def folders_in_use(session: Session) -> frozenset[str]:
    """The folders of models that jobs which have not ended were submitted with."""
    specs = session.scalars(select(Job.spec["models"]).where(Job.status.in_((*LIVE, "cancelling"))))
    parts = (part for models in specs for model in models or () for part in (model, model.get("adapter")) if part)
    return frozenset(str(part["path"]) for part in parts)
