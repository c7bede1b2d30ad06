"""The command `glue`: every command is a function of a module beside this one, registered here."""

import typer

from glue.cli import hub, jobs
from glue.cli.cluster import cluster
from glue.cli.convert import convert
from glue.cli.merge import merge
from glue.cli.mix import mix
from glue.cli.preflight import preflight
from glue.cli.stack import stack
from glue.cli.telling import telling
from glue.cli.up import up

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="A zoo of fine-tuned language models in, one better model out.",
)


@app.callback()
def main() -> None:
    """Commands of the client and the service."""


app.command()(up)
app.command()(merge)
app.command()(mix)
app.command()(stack)
app.command()(convert)
app.command()(cluster)
app.command()(preflight)
app.add_typer(jobs.zoo_app, name="zoo")
app.add_typer(hub.hub_token_app, name="hub-token")
for name, action in (("set", hub.set_token), ("show", hub.show_token), ("forget", hub.forget_token)):
    hub.hub_token_app.command(name)(telling(action))
_JOB_COMMANDS = (
    jobs.submit,
    jobs.jobs,
    jobs.status,
    jobs.follow,
    jobs.pause,
    jobs.resume,
    jobs.cancel,
    jobs.report,
    jobs.pull,
)
for command in _JOB_COMMANDS:
    app.command()(command)
