"""The command `maskimg demo`, which the command line finds by its entry point in pyproject.toml.

`python -m maskimg_apps.demo` is the same.
"""

import sys

from maskimg.cli.main import main
from maskimg.cli.options import Parser, add_machine


def demo(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument(
        "--model",
        type=str,
        help="bundled model, model directory or hub repository; emoji-64 by default",
    )
    parser.add_argument(
        "--models",
        type=str,
        default="runs",
        help="folder of models to choose from on the page; the Train tab also writes there",
    )
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        help="address to listen on; the Train tab appears only if no other machine can reach it",
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on; if it is taken, the next free one")
    parser.add_argument("--share", action="store_true", help="create a public link; needs --user and --password-file")
    parser.add_argument("--user", type=str, help="user name of the login")
    parser.add_argument("--password-file", type=str, help="file with the password of the login")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--mcp", action="store_true", help="also offer the page's calls to agents, as an MCP server")
    add_machine(parser)
    given = parser.parse_args(arguments)
    from maskimg_apps.demo.serving.proxies import EVERYWHERE, around_proxies

    with around_proxies(EVERYWHERE):  # Gradio makes a client when it is imported, which some proxies prevent
        from maskimg_apps.demo.app import Address, read_login, serve

    login = read_login(given.user, given.password_file)
    serve(
        given.model,
        Address(given.host, given.port, given.share, login),
        folder=given.models,
        device=given.device,
        dtype=given.dtype,
        open_browser=given.open,
        mcp=given.mcp,
    )


if __name__ == "__main__":
    raise SystemExit(main(["demo", *sys.argv[1:]]))
