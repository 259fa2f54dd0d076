"""What the stand-in says of names that it does not have."""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportRedeclaration=false
# pyright: reportAssignmentType=false, reportCallIssue=false


def attribute(module):
    """A module's `__getattr__`."""

    def find(name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(  # an AttributeError would lose these words in `from module import name`
            module + " has no " + repr(name) + " here: this is a slim stand-in. To get the whole package, name "
            "eval-protocol (or reward-kit) in requirements.txt"
        )

    return find
