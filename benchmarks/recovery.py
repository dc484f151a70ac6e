"""Training after the cut beside a plain loop of torch alone: tokens a second, peak memory, and what kept teacher targets save.

    OMP_NUM_THREADS=1 python benchmarks/recovery.py

The embedded model with half of its weights gone learns the dense model's distributions on random windows: by
`training=distillation`, by a loop of twenty lines with the same model, batch and loss, and by that loop with the teacher asked
anew at every step. Each is a process of its own; the three take turns, and medians are told.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig
from selfprune.models.units import weight_view
from selfprune.training.base import Lesson
from selfprune.training.distillation import Distillation
from selfprune.training.targets import Targets, prepare_targets
from selfprune.training.trained_parameters import trained_parameters

WAYS = ("ours", "plain", "teacher")


def main() -> None:
    """Prints the rate and the peak of each way, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-windows", type=int, default=64)
    parser.add_argument("--n-tokens", type=int, default=256)
    parser.add_argument("--n-repeats", type=int, default=3)
    parser.add_argument("--path", default="embedded")
    parser.add_argument("--way", choices=WAYS)
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments)
        return
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.n_repeats):
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            rate, peak = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:])
            found[way].append((rate, peak))
    rates = {way: statistics.median(rate for rate, _ in each) for way, each in found.items()}
    peaks = {way: statistics.median(peak for _, peak in each) for way, each in found.items()}
    for way in WAYS:
        print(f"{way}: {rates[way]:,.0f} tokens a second, peak {peaks[way] / 1e3:,.0f} MB")
    rate, peak = rates["ours"] / rates["plain"], peaks["ours"] / peaks["plain"]
    print(f"ours / plain: {rate:.2f} times the tokens a second, {peak:.2f} times the peak")
    print(f"kept targets / teacher in the loop: {rates['ours'] / rates['teacher']:.2f} times the tokens a second")


def measure(arguments: argparse.Namespace) -> None:
    """One way, in this process; prints tokens a second and the peak in kB."""
    loaded = load_model(ModelConfig(arguments.path, device="cpu"))
    dense = load_model(ModelConfig(arguments.path, device="cpu")) if arguments.way == "teacher" else loaded
    generator = torch.Generator().manual_seed(0)
    shape = arguments.n_windows, arguments.n_tokens
    windows_NT = torch.randint(3, loaded.model.config.vocab_size, shape, generator=generator)
    config = Distillation(n_tokens=windows_NT.numel(), n_checks=1)
    with tempfile.TemporaryDirectory() as folder:
        empty = arguments.way == "teacher"
        targets = (
            Targets(config.metric(), ()) if empty else prepare_targets(config.metric(), loaded.model, windows_NT, 8, Path(folder))
        )
        with torch.no_grad():
            for unit in loaded.units:
                matrix = weight_view(loaded.model, unit)
                matrix[torch.rand(matrix.shape, generator=generator) < 0.5] = 0
        with trained_parameters(loaded.model, loaded.units, config.trained, config.rank, 0) as parameters:
            if arguments.way == "ours":
                lesson = Lesson(windows_NT, targets, lambda: 1.0, loaded, 0, Path(folder))
                course = config.train_in_place(loaded, parameters, lesson)
                seconds = course.seconds
            else:
                seconds = plain(loaded.model, parameters, windows_NT, targets, config, dense.model if empty else None)
    print(windows_NT.numel() / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def plain(model, parameters, windows_NT, targets, config, teacher) -> float:
    """Seconds of a loop of torch alone."""
    optimizer = torch.optim.AdamW(parameters.values(), config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    metric = KLDivergence(config.n_top)
    order = torch.randperm(len(windows_NT), generator=torch.Generator().manual_seed(0)).tolist()
    began = time.perf_counter()
    for start in range(0, len(order), config.batch_size):
        windows = order[start : start + config.batch_size]
        tokens_NT = windows_NT[windows]
        logits_NTV = model(input_ids=tokens_NT, use_cache=False).logits
        if teacher is None:
            loss = targets.scores(logits_NTV, tokens_NT, windows).mean()
        else:
            with torch.no_grad():
                answers = metric.prepare(teacher(input_ids=tokens_NT, use_cache=False).logits, tokens_NT)
            loss = metric.window_scores(logits_NTV, tokens_NT, answers).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
