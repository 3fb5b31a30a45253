"""Whether the noise is what it should be, at length: python -m bench.randomness [--quick] [--out FILE]

Each test gives a p-value, one JSON line each; under 1e-6 it is called a failure. Half an hour on two cores; a minute with --quick.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from zokern import Layout, NoiseKey, ops
from zokern.noise import reference, spec

from . import record

FAILURE = 1e-6
CHUNK = 1 << 16  # elements held at a time: in a second-level cache
BINS, REACH = 512, 8  # of a histogram: so many for each unit, to both sides
WORDS = 1 << 16


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.randomness", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the values")
    parser.add_argument("--out", type=Path, help="JSON lines are appended to it")
    arguments = parser.parse_args(argv)
    failed = 0
    torch.set_num_threads(1)  # chunks are small
    for name, p, facts in every(100 if arguments.quick else 1):
        failed += not p > FAILURE
        print(f"{name:<52} p = {p:.4g}{'' if p > FAILURE else '  FAILED'}", flush=True)
        if arguments.out:
            line = {"suite": "randomness", "test": name, "p": p, **facts, **record.where(torch.device("cpu"))}
            record.append(arguments.out, [line])
    return 1 if failed else 0


def every(less):
    """(name, p-value, facts) of every test; a value in so many of what the whole takes."""
    for name, make in {"one key": one_key, "a key for each chunk": many_keys}.items():
        yield from normals(f"normals of {name}", make(0), 10_000_000_000 // less)
        yield from signs(f"signs of {name}", make(spec.SIGNS), 20_000_000_000 // less)
    for what in FAMILIES:
        yield from short_streams(what, (1 << 26) // less)
        for kind, noise in (("normals", spec.PERTURBATION), ("signs", spec.SIGNS)):
            yield sums(what, kind, noise, (1 << 22) // less)
            yield flips(what, kind, noise, (1 << 22) // less)
    yield from avalanche((1 << 18) // less)


def one_key(purpose):
    return lambda k: (NoiseKey.of(0, 0, purpose), k * CHUNK)


def many_keys(purpose):
    return lambda k: (NoiseKey.of(k, 3 * k, purpose, k % 5), k << 30)


def chunks(where, count):
    for k in range(-(-count // CHUNK)):
        yield ops.make_noise(*where(k), CHUNK)


def normals(name, where, count):
    """Kolmogorov-Smirnov at the edges of a histogram, chi-square of it, tails, moments."""
    edges = np.arange(-REACH, REACH + 0.5 / BINS, 1 / BINS)
    counts, powers, n = torch.zeros(len(edges) - 1, dtype=torch.int64), dict.fromkeys((1, 2, 3, 4, 6), 0.0), 0
    for z in chunks(where, count):
        x = z.double()
        counts += torch.bincount(((x + REACH) * BINS).int(), minlength=len(counts))  # exact in float64
        square = x * x
        for power, factors in {
            1: (x, torch.ones_like(x)),
            2: (x, x),
            3: (x, square),
            4: (square, square),
            6: (square, square * square),
        }.items():
            powers[power] += float(torch.dot(*factors))
        n += len(z)
    found, cdf = counts.numpy(), stats.norm.cdf(edges)
    distance = np.abs(found.cumsum() / n - cdf[1:]).max()
    yield f"{name}: Kolmogorov-Smirnov", float(stats.kstwobign.sf(distance * n**0.5)), {"n": n, "distance": float(distance)}
    expected = np.diff(cdf) * n
    enough = expected > 100
    chi = ((found - expected)[enough] ** 2 / expected[enough]).sum()
    yield f"{name}: chi-square of {enough.sum()} bins", float(stats.chi2.sf(chi, enough.sum())), {"n": n}
    for sigma in (3, 4, 5):
        beyond, rate = int(found[np.abs(edges[:-1] + 0.5 / BINS) > sigma].sum()), float(2 * stats.norm.sf(sigma) * n)
        yield f"{name}: beyond {sigma} sigma", two_sided((beyond - rate) / rate**0.5), {"n": n, "found": beyond, "expected": rate}
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        off = (powers[power] / n - mean) / (variance / n) ** 0.5
        yield f"{name}: moment {power}", two_sided(off), {"n": n, "moment": powers[power] / n}


def signs(name, where, count):
    """Each sign alone, and in words of 16: from a word's first, and overlapping by 8."""
    words, n = np.zeros((2, WORDS)), 0
    for z in chunks(where, count):
        packed = np.packbits((z < 0).numpy(), bitorder="little")
        for i, shifted in enumerate((packed, packed[1:-1])):
            words[i] += np.bincount(shifted.view(np.uint16), minlength=WORDS)
        n += len(z)
    ones = np.array([bin(w).count("1") for w in range(WORDS)]) @ words[0]
    yield f"{name}: as many -1 as +1", two_sided((2 * ones - n) / n**0.5), {"n": n}
    for i, which in enumerate(("words of 16", "words of 16, shifted by 8")):
        yield f"{name}: {which}", float(stats.chisquare(words[i]).pvalue), {"n": n}


# What the k-th key has k times: seed, step, probe, and index of the first element; and how many bits such a k may have.
FAMILIES = {
    "seeds": ((1, 0, 0, 0), 64),
    "high halves of seeds": ((1 << 32, 0, 0, 0), 32),
    "steps": ((0, 1, 0, 0), 32),
    "probes": ((0, 0, 1, 0), 24),
    "elements 2^23 apart": ((0, 0, 0, 1 << 23), 36),
    "seeds and steps together": ((1, 1, 0, 0), 32),
}


def key_of(what, purpose, k):
    seed, step, probe, first = (k * times for times in FAMILIES[what][0])
    return NoiseKey.of(seed, step, purpose, probe), first


def sums(what, kind, purpose, count, terms=1000):
    """The sum of z of 1,000 neighbouring keys, over sqrt(1000): normal, or binomial."""
    total = torch.zeros(count)
    layout = Layout([total])
    pairs = [key_of(what, purpose, k) for k in range(terms)]
    if any(first for _, first in pairs):
        for key, first in pairs:
            total += ops.make_noise(key, first, count)
    else:
        ops.add_noise_(layout, [(key, 1.0) for key, _ in pairs])
    if kind == "signs":
        found = np.bincount(((total.double() + terms) / 2).long().numpy(), minlength=terms + 1)
        expected = stats.binom.pmf(np.arange(terms + 1), terms, 0.5) * count
        large = expected > 10
        rest = [found[~large].sum()], [expected[~large].sum()]
        chi = sum(((f - e) ** 2 / e).sum() for f, e in ((found[large], expected[large]), (np.array(rest[0]), np.array(rest[1]))))
        p = float(stats.chi2.sf(chi, large.sum()))
    else:
        p = float(stats.kstest(total.double().numpy() / terms**0.5, "norm").pvalue)
    return f"sums of {terms} {kind}, {what}", p, {"n": count * terms}


def flips(what, kind, purpose, count):
    """Correlation of z, and of z^2, between keys that differ in one bit: the largest of all pairs."""
    bits = FAMILIES[what][1]
    base = make(*key_of(what, purpose, 0), count, kind)
    largest = 0.0
    for bit in range(bits):
        other = make(*key_of(what, purpose, 1 << bit), count, kind)
        largest = max(largest, *(abs(float(a @ b)) / count**0.5 for a, b in zip(base, other)))
    tests = bits * len(base)
    return f"one bit flipped, {kind}, {what}", float(min(1.0, tests * 2 * stats.norm.sf(largest))), {"n": count * bits, "tests": tests}


def make(key, first, count, kind):
    """z, and of normals (z^2 - 1) / sqrt(2)."""
    z = ops.make_noise(key, first, count).double()
    return [z] if kind == "signs" else [z, (z * z - 1) / 2**0.5]


def short_streams(what, count):
    """The first four normals of each of many keys that follow each other: as one sample, and correlated with the next key's."""
    k = np.arange(count // 4, dtype=np.uint64)
    seed, step, probe, first = (k * np.uint64(times) for times in FAMILIES[what][0])
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    w = reference.philox((first >> np.uint64(2) & low, first >> np.uint64(34), step, probe), (seed & low, seed >> high))
    z = np.stack([z for pair in (w[:2], w[2:]) for z in reference.box_muller(*pair)], -1).astype(np.float64)
    yield f"four of each key, {what}: Kolmogorov-Smirnov", float(stats.kstest(z.ravel(), "norm").pvalue), {"n": z.size}
    forms = z, (z * z - 1) / 2**0.5
    largest = max(abs(float(a[1:] @ b[:-1])) / len(a) ** 0.5 for form in forms for a in form.T for b in form.T)
    yield f"four of each key, {what}: with the next key's", float(min(1.0, 32 * 2 * stats.norm.sf(largest))), {"n": z.size}


def avalanche(count):
    """One bit of counter or key flipped: each bit of the words changes in half of all blocks."""
    generator = np.random.default_rng(0)
    inputs = generator.integers(1 << 32, size=(6, count), dtype=np.uint64)
    base = np.stack(reference.philox(inputs[:4], inputs[4:]))
    for word, what in enumerate(("counter word 0", "counter word 1", "counter word 2", "counter word 3", "key word 0", "key word 1")):
        chi = 0.0
        for bit in range(32):
            flipped = inputs.copy()
            flipped[word] ^= np.uint64(1 << bit)
            changed = np.stack(reference.philox(flipped[:4], flipped[4:])) ^ base
            counts = np.unpackbits(changed.view(np.uint8), axis=1).reshape(4, count, 32).sum(axis=1)
            chi += ((counts - count / 2) ** 2 / (count / 4)).sum()
        yield f"one bit of {what} flipped: words change", float(stats.chi2.sf(chi, 32 * 128)), {"n": count * 32}


def two_sided(off):
    return float(2 * stats.norm.sf(abs(off)))


if __name__ == "__main__":
    sys.exit(main())
