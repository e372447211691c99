"""Where an epoch's time goes, operator by operator: ``python -m benchmarks.profile_ops``."""

import argparse

import numpy as np
from torch.profiler import ProfilerActivity, profile

from sklconv import ConvNetClassifier

from .race import networks

N_IMAGES = 2_560


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.profile_ops", description=__doc__)
    parser.add_argument("--networks", default="R1,R2", help="comma-separated; R1,R2 by default")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--operators", type=int, default=20, help="lines a network")
    options = parser.parse_args()
    for name in options.networks.split(","):
        events, n_batches = profile_epoch(name, options.batch_size)
        show(name, events, n_batches, options.operators)


def profile_epoch(name, batch_size):
    """Return the operators' records of one epoch of network ``name``, and its batches."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (N_IMAGES, 28, 28), dtype=np.uint8)
    y = np.arange(N_IMAGES) % 10
    classifier = ConvNetClassifier(
        module=networks.declarative(name),
        max_epochs=1,
        batch_size=batch_size,
        lr_schedule=None,
        random_state=0,
    )
    # The first epoch creates kernels and buffers.
    classifier.fit(X, y)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        classifier.fit(X, y)
    return record.key_averages(), -(-N_IMAGES // batch_size)


def show(name, events, n_batches, n_operators):
    """Print the operators that took most, each without those that it called."""
    total = sum(event.self_cpu_time_total for event in events)
    print(f"{name}: {total / n_batches / 1000:.2f} ms a batch under the profiler\n")
    print(f"{'operator':<48} {'share':>6} {'ms a batch':>11} {'calls a batch':>14}")
    ordered = sorted(events, key=lambda event: -event.self_cpu_time_total)
    for event in ordered[:n_operators]:
        time = event.self_cpu_time_total
        print(
            f"{event.key[:48]:<48} {time / total:>6.1%} {time / n_batches / 1000:>11.3f} "
            f"{event.count / n_batches:>14.1f}"
        )
    print()


if __name__ == "__main__":
    main()
