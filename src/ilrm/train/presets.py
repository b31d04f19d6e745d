"""Named training runs: every row of the paper, our small network on procedural scenes, and a short trial.

A preset is a function from the folder of the data to a config. What none of its words says otherwise is common to
all presets of the paper:

- Paper: squared error + 0.5 x perceptual loss; AdamW (0.9, 0.95), decay 0.05 except on norm gains, peak 2e-4 after a
  warm-up of 2,500 steps, then a cosine to zero; normal initialisation of deviation 0.02.
- Released code: bf16 autocast, recomputed activations, horizontal flips, gradient clip 1.0 (written there, but not
  connected), its crops and view samplers, all checkpoints kept that are written every 20,000 steps.
- Ours: the perceptual loss is the VGG-19 one; the paper cites its origin, the released code has only LPIPS. The
  batch is that of all ranks together: ``accumulate`` fits it onto fewer GPUs.

The released code trains with other numbers than the paper in places (peak 4e-4 one-cycle, 100,001 steps):
``override(config, ["optimiser.peak=4e-4", "optimiser.schedule=one_cycle", "steps=100001"])``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ilrm.core.errors import ConfigError
from ilrm.datasets.procedural import ProceduralConfig
from ilrm.files.paths import is_dir
from ilrm.model import ComputeConfig, FeedbackConfig, FootprintDecoder, ILRMConfig, MatchingConfig
from ilrm.train.config import (
    Bounded,
    BoundedV2,
    Captures,
    Chunks,
    FeedbackTraining,
    InputNoise,
    LossConfig,
    OptimiserConfig,
    Procedural,
    Range,
    Sampler,
    SceneList,
    Spread,
    Stage,
    TrainConfig,
)

Preset = Callable[[Path | None], TrainConfig]

# Procedural scenes that validate; training counts up from ``Procedural.first_seed``, which is larger.
_VALIDATION_SEED = 5_000_000
# Captures that ``mixed-small`` validates on and never trains on. None of the others shows the same place or thing.
HELD_OUT = ("lewis_a", "lewis_b", "skull_flash", "skull_flash_b", "viking")


def preset(name: str, data: Path | str | None = None) -> TrainConfig:
    """The config of a named run.

    Args:
        name: one of ``PRESETS``.
        data: folder of the data set, for the presets that are not procedural. For ``re10k-*`` and ``dl3dv-*`` it
            holds ``train`` and ``test``, each with chunks and their ``index.json``; for ``undistorted-*`` the lists
            ``train.txt`` and ``test.txt``.

    Raises:
        ConfigError: no such preset (lists them), or a data folder that is not given or not there.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}.", expected=f"one of {', '.join(PRESETS)}")
    return PRESETS[name](None if data is None else Path(data))


def re10k_2view(data: Path | None) -> TrainConfig:
    """RE10K at 256x256, setting (2, F, F): the released two-view network.

    Paper: 200,000 steps on 8 GPUs; the batch is not stated.
    Released code: the network with its scale normalisation, 32 samples a GPU (so 256 here), two inputs that bound a
    window growing from 25-45 to 45-135 frames over 30,000 steps, four targets, crops that leave the principal point.
    """
    return _re10k("re10k-2view", data, ILRMConfig.released_two_view(), inputs=2, batch=256, steps=200_000)


def re10k_4view(data: Path | None) -> TrainConfig:
    """RE10K at 256x256, setting (4, H, F).

    Paper: batch 128, 100,000 steps on 8 GPUs. With ``stages.0.batch=16``, one GPU gave 29.24 dB.
    Released code: the network (of the wide weights), window and crops as for two views.
    Ours: the further inputs stand evenly between the window's ends.
    """
    return _re10k("re10k-4view", data, ILRMConfig.released_wide(), inputs=4, batch=128, steps=100_000)


def re10k_8view(data: Path | None) -> TrainConfig:
    """RE10K at 256x256, setting (8, H, F).

    Paper: batch 256, 50,000 steps on 8 GPUs. The rest as for four views.
    """
    return _re10k("re10k-8view", data, ILRMConfig.released_wide(), inputs=8, batch=256, steps=50_000)


def dl3dv_256(data: Path | None) -> TrainConfig:
    """DL3DV at 256x448 from 6 to 11 input views (DepthSplat protocol).

    Paper: batch 96, 100,000 steps, starting from the RE10K (8, H, F) weights: give ``initial_weights`` for that.
    Released code: inputs are farthest points of a window growing from 15-30 to 20-50 frames over 10,000 steps, four
    targets from the window, centre crop of stored 270x480 photos.
    """
    sampler = BoundedV2(inputs=(6, 11))
    return _dl3dv("dl3dv-256", data, (256, 448), sampler, steps=100_000)


def dl3dv_512(data: Path | None) -> TrainConfig:
    """DL3DV at 512x960 from 6 to 11 input views.

    Paper: 50,000 more steps, starting from the weights of ``dl3dv-256``: give ``initial_weights`` for that. It is
    scored on windows of 100 frames.
    Ours: the batch (96, as before), and windows of 30 to 100 frames for the whole run.
    """
    sampler = BoundedV2(inputs=(6, 11), min_gap=(30, 30), max_gap=(100, 100), warm_up=0)
    return _dl3dv("dl3dv-512", data, (512, 960), sampler, steps=50_000)


def undistorted_16view(data: Path | None) -> TrainConfig:
    """Undistorted DL3DV at 544x960 from 16 input views (Long-LRM protocol).

    Paper: resolutions 256x256, 512x512, 540x960 one after the other on 8 GPUs; nothing else is stated.
    Released code: 540x960 is really 544x960, stretched; inputs by k-means on the cameras.
    Ours: 60,000, 20,000 and 20,000 steps at batch 64, 32 and 16; square photos are centre crops; eight targets.
    """
    return _undistorted("undistorted-16view", data, inputs=16)


def undistorted_32view(data: Path | None) -> TrainConfig:
    """Undistorted DL3DV at 544x960 from 32 input views; otherwise as ``undistorted-16view``."""
    return _undistorted("undistorted-32view", data, inputs=32)


def synthetic_small(data: Path | None) -> TrainConfig:
    """An 11.7 M parameter network with learned matching, on procedural scenes: 2 to 12 views, 128 to 256 px, CPU-sized.

    Ours throughout. Few views first, then more, then larger images; true depth supervises the matching and the
    Gaussians' distance beside the squared error of four unseen views.
    """
    _no_data("synthetic-small", data)
    model = ILRMConfig(
        width=256,
        layers=6,
        image_channels=("rgb", "origin", "direction", "moment", "match", "consistency"),
        decoder=FootprintDecoder(opacity_bias=3.0, smoothing=0.2),
        matching=MatchingConfig(planes=48, sources=3, window=5, channels=16, fine=9),
        pixel_head=64,
        camera_encoding="prope",
    )

    def stage(start: int, side: int, inputs: tuple[int, ...], batch: int, baseline: tuple[float, float]) -> Stage:
        source = Procedural(ProceduralConfig(baseline=baseline))
        return Stage((side, side), batch, Spread(inputs=inputs, targets=4), (source,), start, flip=False)

    stages = (
        stage(0, 128, (2, 3, 4), 4, (0.05, 1.0)),
        stage(400, 128, (2, 4, 8, 12), 2, (0.1, 1.5)),
        stage(1500, 256, (2, 4, 8), 1, (0.1, 1.5)),
    )
    return TrainConfig(
        name="synthetic-small",
        model=model,
        stages=stages,
        steps=1800,
        loss=LossConfig(depth=0.1, matching=0.02),
        optimiser=OptimiserConfig(peak=8e-4, warm_up=50, ema=0.995),
        validation=_procedural_validation(stages[1], ProceduralConfig(baseline=(0.1, 1.5))),
        seed=1,
        save_every=50,
        validate_every=100,
        validation_scenes=6,
    )


def synthetic_feedback(data: Path | None) -> TrainConfig:
    """The network of ``synthetic-small`` with feedback, which alone learns at first; from ``ilrm-small``.

    Ours throughout. One to four iterations a step, the logarithm of the squared error after each of them.
    """
    _no_data("synthetic-feedback", data)
    small = synthetic_small(None)
    scenes = ProceduralConfig(baseline=(0.1, 1.5))
    stage = Stage((128, 128), 1, Spread(inputs=(2, 4, 8, 8, 12), targets=4), (Procedural(scenes),), flip=False)
    return replace(
        small,
        name="synthetic-feedback",
        model=replace(small.model, feedback=FeedbackConfig()),
        feedback=FeedbackTraining(),
        initial_weights="ilrm-small",
        stages=(stage,),
        steps=5000,
        loss=LossConfig(iterations=1.0, closer=0.25, logarithmic=True, depth=0.1),
        optimiser=OptimiserConfig(peak=1e-3, warm_up=50, weight_decay=0.01, ema=0.99),
        precision="fp32",  # small convolutions are slower in bf16 on CPUs
        validation=_procedural_validation(stage, scenes),
        seed=2,
        save_every=100,
        validate_every=200,
    )


def mixed_small(data: Path | None) -> TrainConfig:
    """The network of ``synthetic-small`` on real captures and photographic procedural scenes, from ``ilrm-small`` on.

    Ours throughout. ``data`` is a folder of posed captures that holds those of ``HELD_OUT``; for another one change
    ``leave_out`` of the captures in each stage and ``only`` of those that validate. About a third of the samples are
    captures. Steps are small and many: fine-tuning with a rate of 1e-3 has unlearned more than it taught.
    """
    return _mixed(
        "mixed-small",
        data,
        replace(
            synthetic_small(None),
            steps=6000,
            optimiser=OptimiserConfig(peak=1e-4, warm_up=300, ema=0.998),
            initial_weights="ilrm-small",
        ),
        large_from=4000,
    )


def mixed_feedback(data: Path | None) -> TrainConfig:
    """As ``synthetic-feedback``, on the data of ``mixed-small``."""
    return _mixed("mixed-feedback", data, synthetic_feedback(None))


def _mixed(name: str, data: Path | None, run: TrainConfig, large_from: int | None = None) -> TrainConfig:
    """A run on captures and photographic scenes instead of its own, at 128 px and, from a step on, at 256."""
    captures = Captures(_needed(name, data), weight=0.35, leave_out=HELD_OUT)
    scenes = ProceduralConfig(baseline=(0.1, 1.5), style="photographic")
    sources = (Procedural(scenes, weight=0.65), captures)
    batch = run.stages[-1].batch if large_from is None else 2

    def stage(start: int, side: int, wide: Range, inputs: tuple[int, ...], batch: int) -> Stage:
        sampler = Spread(inputs=inputs, targets=4)
        return Stage(
            (side, side), batch, sampler, sources, start, shapes=(wide, (wide[1], wide[0])), noise=InputNoise()
        )

    first = stage(0, 128, (96, 160), (2, 4, 8, 12), batch)
    later = () if large_from is None else (stage(large_from, 256, (208, 304), (2, 4, 8), 1),)
    held_out = (Procedural(scenes, first_seed=_VALIDATION_SEED), Captures(captures.path, only=HELD_OUT))
    return replace(
        run,
        name=name,
        stages=(first, *later),
        validation=replace(first, batch=1, sources=held_out),
        validation_scenes=2 * len(HELD_OUT),
    )


def smoke(data: Path | None) -> TrainConfig:
    """A trial of the whole machinery: a tiny network at 64 px on procedural scenes, about two minutes on two cores.

    Ours throughout. It is no useful network, but its loss falls. Scenes are few objects without shadows, and small
    patches make many tokens, so that making scenes keeps pace with training on them.
    """
    _no_data("smoke", data)
    scenes = ProceduralConfig(baseline=(0.05, 0.4), objects=(2, 6), shadows=False)
    stage = Stage((64, 64), 4, Spread(inputs=(2, 3)), (Procedural(scenes),))
    return TrainConfig(
        name="smoke",
        model=ILRMConfig(width=64, head_width=32, layers=4, patch_size=4, decoder=FootprintDecoder()),
        stages=(stage,),
        steps=400,
        loss=LossConfig(depth=0.1),
        # A run of N steps is the beginning of any longer one.
        optimiser=OptimiserConfig(peak=2e-3, schedule="constant", warm_up=20, ema=0.95),
        validation=_procedural_validation(stage, scenes),
        precision="fp32",
        save_every=50,
        validate_every=100,
    )


def _mini_batch(name: str, whole: Preset) -> Preset:
    def variant(data: Path | None) -> TrainConfig:
        config = whole(data)
        return replace(config, name=name, compute=replace(config.compute, mini_batch="quarter"))

    variant.__doc__ = f"As ``{name.removesuffix('-mc')}``, with quarter mini-batch cross-attention (MC in the paper)."
    return variant


PRESETS: dict[str, Preset] = {
    "re10k-2view": re10k_2view,
    "re10k-4view": re10k_4view,
    "re10k-8view": re10k_8view,
    "re10k-2view-mc": _mini_batch("re10k-2view-mc", re10k_2view),
    "re10k-4view-mc": _mini_batch("re10k-4view-mc", re10k_4view),
    "re10k-8view-mc": _mini_batch("re10k-8view-mc", re10k_8view),
    "dl3dv-256": dl3dv_256,
    "dl3dv-512": dl3dv_512,
    "undistorted-16view": undistorted_16view,
    "undistorted-32view": undistorted_32view,
    "synthetic-small": synthetic_small,
    "synthetic-feedback": synthetic_feedback,
    "mixed-small": mixed_small,
    "mixed-feedback": mixed_feedback,
    "smoke": smoke,
}


def _re10k(name: str, data: Path | None, model: ILRMConfig, *, inputs: int, batch: int, steps: int) -> TrainConfig:
    root = _needed(name, data)
    stage = Stage((256, 256), batch, Bounded(inputs=inputs), (Chunks(root / "train"),), fit="released")
    return _paper(name, model, (stage,), steps, replace(stage, sources=(Chunks(root / "test"),)))


def _dl3dv(name: str, data: Path | None, size: tuple[int, int], sampler: Sampler, *, steps: int) -> TrainConfig:
    root = _needed(name, data)
    stage = Stage(size, 96, sampler, (Chunks(root / "train"),), fit="released_shim")
    validation = replace(stage, sources=(Chunks(root / "test"),))
    return _paper(name, ILRMConfig.released_wide(), (stage,), steps, validation)


def _undistorted(name: str, data: Path | None, *, inputs: int) -> TrainConfig:
    root = _needed(name, data)
    sources = (SceneList(root / "train.txt"),)
    sampler = Spread(inputs=(inputs,), targets=8, selection="kmeans")
    stages = (
        Stage((256, 256), 64, sampler, sources),
        Stage((512, 512), 32, sampler, sources, start=60_000),
        Stage((544, 960), 16, sampler, sources, start=80_000, fit="stretch"),
    )
    # As it is scored: every eighth frame is a target and never an input.
    held_out = replace(sampler, hold_out_every=8)
    validation = replace(stages[-1], sampler=held_out, sources=(SceneList(root / "test.txt"),))
    return _paper(name, ILRMConfig.released_wide(), stages, 100_000, validation)


def _paper(name: str, model: ILRMConfig, stages: tuple[Stage, ...], steps: int, validation: Stage) -> TrainConfig:
    """What all presets of the paper have in common; see the top of this file."""
    return TrainConfig(
        name=name,
        model=model,
        compute=ComputeConfig(checkpoint=True),
        stages=stages,
        steps=steps,
        loss=LossConfig(perceptual="vgg"),
        optimiser=OptimiserConfig(),
        validation=replace(validation, start=0, batch=1, flip=False),
        workers=4,
        keep_every=20_000,
    )


def _procedural_validation(stage: Stage, scenes: ProceduralConfig) -> Stage:
    """Scenes that training never sees."""
    source = Procedural(scenes, first_seed=_VALIDATION_SEED)
    return replace(stage, sources=(source,), start=0, batch=1, flip=False)


def _needed(name: str, data: Path | None) -> Path:
    if data is None or not is_dir(data):
        problem = "was given no data." if data is None else f"was given {data}, which is no folder."
        raise ConfigError(
            f"The preset {name} {problem}", expected="the folder of its data set", fix="give it with --data"
        )
    return data


def _no_data(name: str, data: Path | None) -> None:
    if data is not None:
        raise ConfigError(f"The preset {name} makes its own scenes and reads no {data}.", fix="leave --data out")
