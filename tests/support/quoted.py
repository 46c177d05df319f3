"""Code that the documentation quotes."""

import ast
import inspect
import textwrap

from maskimg.sampling import sample_steps


def sampling_loop() -> str:
    """The `for` of `sample_steps` with its comments, as it would stand at the left margin."""
    source = textwrap.dedent(inspect.getsource(sample_steps))
    (loop,) = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.For))
    lines = source.splitlines(keepends=True)[loop.lineno - 1 : loop.end_lineno]
    return textwrap.dedent("".join(lines))
