"""The command line without the server: `server.py` adds `serve`."""

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tallywire", prog_name="tallywire")
def tallywire() -> None:
    """Tallywire streams batched order events over Server-Sent Events, with counts that are exact."""
