"""What a cluster of processes costs: ``python -m benchmarks.cluster``.

Features of a frozen network on a LocalCluster. The most memory a worker ever had, for the images
and for ten times as many; what moves through the loopback interface (that of other programs, too);
how far the features are from those computed without a cluster.
"""

import argparse
import resource
import time

import dask.array as da
import numpy as np
import psutil
from distributed import Client, LocalCluster
from torch import nn

from sklconv import ConvFeatureExtractor

from .race import machine

SHAPE = (3, 32, 32)
BLOCK = 500


def make_extractor(n_weights):
    """A convolution in front of a linear layer that has most of the weights."""
    n_maps, side = 16, 15
    n_wide = n_weights // (n_maps * side * side)
    network = nn.Sequential(
        nn.Conv2d(3, n_maps, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(n_maps * side * side, n_wide),
        nn.ReLU(),
        nn.Linear(n_wide, 10),
    )
    extractor = ConvFeatureExtractor(network, image_shape=SHAPE, device="cpu", engine="torch")
    return extractor.fit(np.zeros((1, *SHAPE), np.uint8))


def images(n):
    """Random pixels, made where they are used, and the same each time."""
    rng = da.random.default_rng(0)
    return rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8, chunks=(BLOCK, *SHAPE))


def most_memory():
    """The largest resident set that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Loopback:
    """Prints the megabytes that have moved, and the seconds, since it was last asked."""

    def __init__(self):
        self.note()

    def note(self):
        counters = psutil.net_io_counters(pernic=True)
        self.before = counters["lo"].bytes_sent, time.perf_counter()

    def report(self, what):
        n_bytes, started = self.before
        self.note()
        moved, seconds = (self.before[0] - n_bytes) / 1e6, self.before[1] - started
        print(f"{what}: {moved:.1f} MB moved, {seconds:.1f} s")


def memory(client, extractor, n):
    """The features of n and of 10 n images, reduced on the workers."""
    for n_images in (n, 10 * n):
        loopback = Loopback()
        features = extractor.transform(images(n_images))
        loopback.report(f"{n_images} images, transform(X)")
        features.mean(axis=0).compute()
        loopback.report(f"{n_images} images, their mean feature")
        peaks = sorted(client.run(most_memory).values())
        print(f"most memory of each worker: {', '.join(f'{mb:.0f} MB' for mb in peaks)}")


def traffic(extractor, n):
    """The features of n images that workers make, or that are sent to them, all fetched."""
    X = images(n)
    local = X.compute()
    loopback = Loopback()
    features = extractor.transform(X).compute()
    loopback.report(f"features ({features.nbytes / 1e6:.1f} MB) of images that are made there")
    extractor.transform(da.from_array(local, chunks=(BLOCK, *SHAPE))).compute()
    loopback.report(f"the same of images ({local.nbytes / 1e6:.1f} MB) that are sent there")
    expected = extractor.transform(local)
    difference = np.abs(features - expected).max() / np.abs(expected).max()
    print(f"largest difference to features of this process: {difference:.1e} of the largest")


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="10,000, and ten times that")
    parser.add_argument("--weights", type=int, default=5_000_000, help="of the network; 5 million")
    options = parser.parse_args()
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    extractor = make_extractor(options.weights)
    n_bytes = sum(4 * parameter.numel() for parameter in extractor.module_.parameters())
    print(f"\nweights: {n_bytes / 1e6:.1f} MB; two workers of a thread each")
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    with cluster, Client(cluster) as client:
        extractor.transform(images(BLOCK)).compute()  # loads the packages
        memory(client, extractor, options.images)
        traffic(extractor, options.images)


if __name__ == "__main__":
    main()
