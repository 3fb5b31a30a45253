"""Who is trained is settled when an optimizer is made: its noise is laid out over the parameters that were trainable then."""


def check_frozen(trained, frozen, step) -> None:
    """
    Args:
        trained, frozen: {parameter: its name, or ""}, as they were when the optimizer was made, or given them.
        step: that is to be made.
    Raises:
        RuntimeError: a parameter has been frozen or unfrozen since, with the cure.
    """
    for p, name in trained.items():
        if not p.requires_grad:
            raise RuntimeError(
                f"step {step}: {_title(p, name)} has been frozen (requires_grad=False) since the optimizer was made, whose noise "
                "reaches it: make a new optimizer of what is to be trained, or unfreeze it"
            )
    for p, name in frozen.items():
        if p.requires_grad:
            raise RuntimeError(
                f"step {step}: {_title(p, name)} was frozen (requires_grad=False) when the optimizer was given it, and is not now: "
                "make a new optimizer of what is to be trained (add_param_group adds to most), or freeze it again"
            )


def _title(p, name):
    return repr(name) if name else f"a parameter of shape {tuple(p.shape)}"
