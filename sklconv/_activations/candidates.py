"""Which layers ``layer="auto"`` looks at: a network's stages and blocks."""

from torch import Tensor

from .taps import NETWORK_OUTPUT, output_tap

# Of levels of names the deepest is taken that has no more: blocks, of very deep networks stages.
MAX_CANDIDATES = 32


def candidate_taps(trace, penultimate):
    """Return the `Tap`s of a network's stages and blocks, in the order in which these end.

    They are modules of one level of names ("layer1", "layer1.0") and of those above it, before
    the classifier and behind the first weights. A convolution or linear layer, its normalisation
    and its activation are one, tapped at the last of them. What goes into the classifier is
    among them.

    Parameters
    ----------
    trace : Trace
    penultimate : Tap or None
        As `penultimate_tap` returns it.
    """
    calls = _hidden_calls(trace)
    depth = max((call.name.count(".") for call in calls), default=0)
    for level in range(depth, -1, -1):
        found = _whole_steps([call for call in calls if call.name.count(".") <= level])
        if len(found) <= MAX_CANDIDATES:
            break
    step = -(-len(found) // MAX_CANDIDATES) or 1
    taps = [output_tap(call.name, trace.calls) for call in found[::-1][::step][::-1]]
    if penultimate not in (None, NETWORK_OUTPUT):
        taps.append(penultimate)
    distinct: dict = {}
    for tap in taps:  # what goes into the classifier may be what a block puts out, by another name
        distinct.setdefault(activation_key(tap, trace.calls), tap)
    return list(distinct.values())


def activation_key(tap, calls):
    """Return what is equal for all `Tap`s of one activation, as of a block and its last layer."""
    if tap.of_input or tap.of_pre_logits or not tap.module:
        return tap
    call = [call for call in calls if call.name == tap.module][tap.n_calls - 1]
    return id(call.output), call.output_version


def _hidden_calls(trace):
    """Return the last calls of the layers behind the first weights and before the classifier."""
    last, scores = {call.name: call for call in trace.calls}, None
    if trace.classifier is None and isinstance(trace.output, Tensor) and trace.output.ndim == 2:
        scores = trace.output.shape  # perhaps of several classifiers, which are averaged
    found, has_weights = [], False
    for call in trace.calls:
        if call is trace.classifier:
            break  # what ends later holds it, or works on its scores
        has_weights = has_weights or any(True for _ in call.module.parameters())
        is_output = call.output is trace.output or call.output.shape == scores
        if has_weights and last[call.name] is call and not is_output:
            found.append(call)
    return found


def _whole_steps(calls):
    """Leave out what puts out the same tensor as another, or what only another one finishes."""
    best: dict = {}
    for call in calls:
        known = best.setdefault(id(call.output), call)
        if _preference(call) < _preference(known):
            best[id(call.output)] = call
    finished = {id(call.input) for call in calls if _only_finishes(call)}
    return [
        call for call in calls if best[id(call.output)] is call and id(call.output) not in finished
    ]


def _preference(call):
    # What has been written into was not yet done; of a stage and its last block, the stage.
    return -call.output_version, call.name.count(".")


def _only_finishes(call):
    """Whether ``call`` is a normalisation or an activation, say, of what another put out."""
    is_new = isinstance(call.input, Tensor) and call.input is not call.output
    if not is_new or call.input.shape != call.output.shape:
        return False
    return all(parameter.ndim < 2 for parameter in call.module.parameters())
