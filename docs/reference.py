"""An extension of griffe, which reads the docstrings for the site: two habits of this code that it does not know.

What a package exports on first use (`_EXPORTS`) is its `__all__`; an entry `a, b: text` under Args is one of each.
"""

import ast
import re

import griffe

GROUP = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


def each_by_itself(group):
    indent, names, text = group.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))


class Reference(griffe.Extension):
    def on_module(self, *, mod, **_):
        exports = mod.members.get("_EXPORTS")
        if exports is not None and exports.is_attribute:
            mod.exports = list(ast.literal_eval(str(exports.value)))

    def on_object(self, *, obj, **_):
        if obj.docstring and "Args:\n" in obj.docstring.value:
            before, args, after = obj.docstring.value.partition("Args:\n")
            obj.docstring.value = before + args + GROUP.sub(each_by_itself, after)
