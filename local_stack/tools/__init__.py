"""Finds the programs that the stack runs: nginx, Consul and consul-template.

Only the standard library is imported, so that `python3 -m local_stack.tools` works from a bare checkout.
"""

from local_stack.errors import ToolError
from local_stack.tools.finder import find
from local_stack.tools.tool import TOOLS

__all__ = ["TOOLS", "ToolError", "find"]
