"""`/v1/hub-token`: the owner's token for the Hub, which goes in and never comes out."""

from fastapi import APIRouter

from api import openapi, schemas, views
from api.bodies import Body
from api.dependencies import CurrentSettings, Owner, Store
from api.problems import RefusalError
from glue.records import hub_tokens
from glue.references.hub_access import HubAccess, endpoint_of_environment
from glue.references.hub_target import account_of
from glue.specs.errors import InvalidInputError, Problem
from glue.specs.publish import HubTokenRequest

router = APIRouter(prefix="/v1/hub-token", tags=["hub"])


@router.put("", openapi_extra=openapi.body(HubTokenRequest, {"token": "hf_..."}))
def put_hub_token(body: Body, owner: Owner, store: Store, settings: CurrentSettings) -> schemas.HubToken:
    """Store the token, encrypted, in place of an earlier one. The Hub is asked whose it is first."""
    token = _request(body).token
    vault = settings.vault
    if vault is None:
        detail = "this service keeps no tokens: whoever runs it has to set GLUE_SECRET_KEY"
        raise RefusalError(409, "no_secret_key", detail)
    account = account_of(HubAccess(endpoint_of_environment(), settings.hub_cache, token=token))
    with store.transaction() as session:
        return views.hub_token(
            hub_tokens.put_token(session, vault, owner, token, account["name"], str(account["role"]))
        )


@router.get("")
def get_hub_token(owner: Owner, store: Store) -> schemas.HubToken:
    """Whose token is stored, and what it may do; the token itself is never shown."""
    with store.transaction() as session:
        row = hub_tokens.get_token(session, owner)
        if row is None:
            raise RefusalError(404, "not_found", "you have stored no token for the Hub")
        return views.hub_token(row)


@router.delete("", status_code=204)
def delete_hub_token(owner: Owner, store: Store) -> None:
    """Forget the token. Jobs that are to publish will fail."""
    with store.transaction() as session:
        hub_tokens.forget_token(session, owner)


def _request(body: object) -> HubTokenRequest:
    try:
        return HubTokenRequest.parse(body)
    except InvalidInputError as error:
        # The parser's own words could quote the token.
        problems = [Problem(p.pointer, p.code, "it is not of the form of a token", p.fix) for p in error.problems]
        raise InvalidInputError('send {"token": "hf_..."}', problems) from None
