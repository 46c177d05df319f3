"""The command `maskimg demo`, which the command line finds by its entry point in pyproject.toml.

`python -m maskimg_apps.demo` is the same.
"""

import sys

from maskimg.cli.main import main
from maskimg.cli.options import Parser, add_machine


def demo(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("--model", type=str, help="bundled name, directory or hub repository")
    parser.add_argument(
        "--models", type=str, default="runs", help="folder of models to choose from, where the tab Train writes, too"
    )
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="address to listen on; the tab Train needs this one"
    )
    parser.add_argument("--port", type=int, default=7860, help="first port to try")
    parser.add_argument("--share", action="store_true", help="a public link; needs --user and --password-file")
    parser.add_argument("--user", type=str, help="name to log in with")
    parser.add_argument("--password-file", type=str, help="file that holds the password")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--mcp", action="store_true", help="offer the page's calls to agents as tools")
    add_machine(parser)
    given = parser.parse_args(arguments)
    from maskimg_apps.demo.serving.proxies import EVERYWHERE, around_proxies

    with around_proxies(EVERYWHERE):  # Gradio makes a client when it is imported, which some proxies prevent
        from maskimg_apps.demo.app import serve

    serve(
        given.model,
        folder=given.models,
        host=given.host,
        port=given.port,
        share=given.share,
        user=given.user,
        password_file=given.password_file,
        device=given.device,
        dtype=given.dtype,
        open_browser=given.open,
        mcp=given.mcp,
    )


if __name__ == "__main__":
    raise SystemExit(main(["demo", *sys.argv[1:]]))
