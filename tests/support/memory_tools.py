"""How much memory a call takes."""

from torch.profiler import ProfilerActivity, profile


def peak(function):
    """The most bytes that were allocated at once in a call, and not before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
