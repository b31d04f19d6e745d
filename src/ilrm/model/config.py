"""What a network is made of. Frozen; contradictions fail when the config is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ilrm.core.cameras import NormalisationRule
from ilrm.core.errors import ConfigError
from ilrm.core.typed_config import build, check_range

RayChannel = Literal["origin", "direction", "moment"]
ImageChannel = Literal["rgb", "origin", "direction", "moment", "match", "consistency"]
MiniBatch = Literal["none", "half", "quarter", "random"]
AttentionName = Literal["auto", "cudnn", "flash", "efficient", "math", "fa3"]

# Channels that each named part of a token contributes per pixel.
CHANNEL_WIDTH = {"rgb": 3, "origin": 3, "direction": 3, "moment": 3, "match": 3, "consistency": 6}

# Far beyond any network that was ever trained; a file of weights may ask for more.
_WIDEST, _MOST_LAYERS, _LARGEST_FACTOR = 2**16, 1000, 256
_MOST_PLANES, _WIDEST_WINDOW, _MOST_CHANNELS = 4096, 255, 4096
_FARTHEST, _LARGEST_BIAS = 1e6, 100.0


@dataclass(frozen=True)
class ReleasedDecoder:
    """Gaussian parametrisation of the released weights (paper, supplement; biases are those of the release).

    Attributes:
        offset: whether each Gaussian may leave its pixel's centre by up to half a viewpoint pixel.
        sh_order: how colour channels are laid out: (coefficient, rgb) or (rgb, coefficient).
        max_distance: the distance along the ray is max_distance * sigmoid(raw).
        scale_bias, scale_max_log: log-scale = min(raw + scale_bias, scale_max_log).
        opacity_bias: opacity = sigmoid(raw + opacity_bias).
    """

    offset: bool = True
    sh_order: Literal["coefficient_rgb", "rgb_coefficient"] = "coefficient_rgb"
    max_distance: float = 500.0
    scale_bias: float = -6.9
    scale_max_log: float = -1.2
    opacity_bias: float = -2.0
    kind: Literal["released"] = "released"

    def __post_init__(self) -> None:
        check_range(self, 1e-6, _FARTHEST, "max_distance")
        check_range(self, -_LARGEST_BIAS, _LARGEST_BIAS, "scale_bias", "scale_max_log", "opacity_bias")


@dataclass(frozen=True)
class FootprintDecoder:
    """Gaussian parametrisation that small training budgets learn faster from.

    The untrained network already shows the photos on a smooth (or the matched) surface: log-depth between ``near``
    and ``far`` (normalised frame), scale relative to one viewpoint pixel at that depth, rotation relative to the
    camera and colour as a residual on the view's own pixels. The decoder's projection starts at zero.

    Attributes:
        near, far: range of the distance along the ray, in the normalised frame.
        scale_range: the scale lies between 1 / scale_range and scale_range footprints.
        opacity_bias: opacity = sigmoid(raw + opacity_bias).
        smoothing: added to every squared scale, in squared pixels of the own image at that depth. Renderers widen what
            is smaller than their pixels; Gaussians that count on that leave holes when they are looked at from
            nearby or on a larger screen (the 3D smoothing filter of Mip-Splatting).
    """

    near: float = 0.2
    far: float = 400.0
    scale_range: float = 8.0
    opacity_bias: float = 2.0
    smoothing: float = 0.0
    kind: Literal["footprint"] = "footprint"

    def __post_init__(self) -> None:
        check_range(self, 0, _FARTHEST, "near", "far", "scale_range", "smoothing")
        check_range(self, -_LARGEST_BIAS, _LARGEST_BIAS, "opacity_bias")
        if not 0 < self.near < self.far:
            raise ConfigError(f"near = {self.near} and far = {self.far}.", expected="0 < near < far")
        if self.scale_range <= 1:
            raise ConfigError(f"scale_range = {self.scale_range}.", expected="more than 1")


@dataclass(frozen=True)
class MatchingConfig:
    """Plane-sweep matching between the input views, read by the network as three more image channels.

    Attributes:
        planes: depth hypotheses, uniform in log-depth over the decoder's range.
        sources: how many of the nearest other views each view is compared with.
        window: side of the correlation window in pixels of the viewpoint grid, odd.
        channels: width of the convolutional network that weighs the hypotheses; 0 takes the best correlation.
        fine: further hypotheses within one plane's distance of each pixel's depth, 0 = none; needs ``channels``.
    """

    planes: int = 64
    sources: int = 4
    window: int = 5
    channels: int = 0
    fine: int = 0

    def __post_init__(self) -> None:
        check_range(self, 0, _MOST_PLANES, "planes", "sources", "fine")
        check_range(self, 0, _WIDEST_WINDOW, "window")
        check_range(self, 0, _MOST_CHANNELS, "channels")
        if self.planes < 3 or self.sources < 1 or self.window < 3 or self.window % 2 == 0:
            raise ConfigError(f"{self}.", expected="planes >= 3, sources >= 1 and an odd window >= 3")
        if self.channels % 4:
            raise ConfigError(f"channels = {self.channels}.", expected="0, or a multiple of 4")
        if self.fine and (self.channels == 0 or self.fine < 3):
            raise ConfigError(
                f"fine = {self.fine} with channels = {self.channels}.", expected="3 or more, and channels"
            )


Evidence = Literal["pixels", "gradients", "samples"]


@dataclass(frozen=True)
class FeedbackConfig:
    """Iterations after the decoder that render the input views, compare them with the photos and correct the Gaussians.

    Attributes:
        iterations: how many there are by default.
        channels: width of the convolutions that read the evidence.
        evidence: what an iteration reads beside the Gaussians and photos themselves. "pixels": the residual of the own
            pixels; "gradients": the photometric error's gradient by each Gaussian; "samples": what the other views show
            where they see it.
    """

    iterations: int = 3
    channels: int = 64
    evidence: tuple[Evidence, ...] = ("pixels", "gradients", "samples")

    def __post_init__(self) -> None:
        check_range(self, 0, _MOST_LAYERS, "iterations")
        check_range(self, 1, _MOST_CHANNELS, "channels")
        if not self.evidence or len(set(self.evidence)) < len(self.evidence):
            raise ConfigError(f"evidence = {self.evidence}.", expected="at least one kind, and each once")


@dataclass(frozen=True)
class ComputeConfig:
    """How a network is computed. Its parameters are the same whatever this says.

    Attributes:
        mini_batch: which share of both token sets a layer's cross-attention works on ("none" = all of them).
        checkpoint: recompute each update layer's activations in the backward pass instead of keeping them.
        attention: kernel of the attention on a GPU: of torch (cudnn, flash, efficient, math) or FlashAttention-3 (fa3,
            if it is installed). "auto" times them once for each shape and takes the fastest.
    """

    mini_batch: MiniBatch = "none"
    checkpoint: bool = False
    attention: AttentionName = "auto"


@dataclass(frozen=True)
class ILRMConfig:
    """The network of the paper. Defaults are the released half-resolution model (V, H, F).

    Attributes:
        width: d, channels of a token.
        head_width: D, channels of an attention head.
        layers: number of update layers (a cross-attention and a self-attention block each).
        patch_size: p, pixels of a token's side.
        viewpoint_factor: r, image pixels per viewpoint pixel: 1 = F, 2 = H, 4 = Q.
        uplift: k, sub-queries that each viewpoint token splits into for cross-attention (1 = none).
        mlp_ratio: hidden width of the MLPs in units of ``width``.
        sh_degree: 0 to 3.
        viewpoint_channels, image_channels: what each pixel of the two token sets holds, in this order.
        image_factor: image tokens come from images reduced by this (1: full resolution, as in the paper's models).
        cross_attention: read the image tokens in every layer, or ("first", an ablation) in the first one only.
        self_attention: exchange across views (without it, an ablation, each view stays alone).
        camera_encoding: "prope" makes self-attention see relative cameras (see ``camera_encoding``); paper: "none".
        normalisation: how the world is scaled before it enters (see ``ilrm.core.cameras.normalise``).
        decoder: how raw channels become Gaussians.
        matching: optional plane-sweep matching; needs "match" among the image channels and the footprint decoder. With
            "consistency" among them, too, Gaussians also start smaller where views overlap and more transparent where
            views contradict them (see ``consistency``).
        pixel_head: hidden channels of a convolution on the viewpoint grid that corrects each Gaussian's raw channels
            after the decoder's projection, 0 = none (not part of the paper).
        feedback: iterations that look at renderings of the Gaussians; none by default, as in the paper.
    """

    width: int = 768
    head_width: int = 64
    layers: int = 12
    patch_size: int = 8
    viewpoint_factor: int = 2
    uplift: int = 2
    mlp_ratio: int = 4
    sh_degree: int = 0
    viewpoint_channels: tuple[RayChannel, ...] = ("origin", "direction", "moment")
    image_channels: tuple[ImageChannel, ...] = ("origin", "direction", "moment", "rgb")
    image_factor: int = 1
    cross_attention: Literal["every", "first"] = "every"
    self_attention: bool = True
    camera_encoding: Literal["none", "prope"] = "none"
    normalisation: NormalisationRule = "transformed"
    decoder: ReleasedDecoder | FootprintDecoder = field(default_factory=ReleasedDecoder)
    matching: MatchingConfig | None = None
    pixel_head: int = 0
    feedback: FeedbackConfig | None = None

    def __post_init__(self) -> None:
        check_range(self, 1, _WIDEST, "width", "head_width")
        check_range(self, 1, _MOST_LAYERS, "layers")
        check_range(self, 1, _LARGEST_FACTOR, "patch_size", "viewpoint_factor", "image_factor", "uplift", "mlp_ratio")
        check_range(self, 0, _MOST_CHANNELS, "pixel_head")
        if self.width % self.head_width:
            raise ConfigError(
                f"width = {self.width} is no multiple of head_width = {self.head_width}.", fix="change either"
            )
        for name in ("viewpoint_channels", "image_channels"):
            channels = getattr(self, name)
            if not channels or len(set(channels)) < len(channels):
                raise ConfigError(f"{name} = {channels}.", expected="at least one, and each once")
        if not 0 <= self.sh_degree <= 3:
            raise ConfigError(f"sh_degree = {self.sh_degree}.", expected="0, 1, 2 or 3")
        if self.viewpoint_factor % self.image_factor:
            raise ConfigError(
                f"image_factor = {self.image_factor} does not divide viewpoint_factor = {self.viewpoint_factor}.",
                fix="image tokens are at least as fine as viewpoint tokens: use 1, or the viewpoint factor itself",
            )
        if self.uplift > self.image_tokens_per_viewpoint_token:
            raise ConfigError(
                f"uplift = {self.uplift} makes more queries than there are image tokens, "
                f"{self.image_tokens_per_viewpoint_token} for each viewpoint token.",
                expected="the lifted sequence is no longer than the image's",
            )
        if self.camera_encoding == "prope" and self.head_width % 8:
            raise ConfigError(
                f"head_width = {self.head_width} cannot be split for relative camera encoding.",
                expected="a multiple of 8",
            )
        if (self.matching is not None) != ("match" in self.image_channels):
            raise ConfigError("matching and the image channel 'match' go together.", fix="set both or neither")
        if self.cross_checks and self.matching is None:
            raise ConfigError("The image channel 'consistency' compares what was matched.", fix="set matching, too")
        if self.matching is not None and self.decoder.kind != "footprint":
            raise ConfigError("matching gives a depth in the footprint decoder's range.", fix="use FootprintDecoder")

    @property
    def cross_checks(self) -> bool:
        """Whether views look at each other's matched surfaces."""
        return "consistency" in self.image_channels

    @property
    def size_multiple(self) -> int:
        """Image sides are rounded to a multiple of this."""
        return self.patch_size * self.viewpoint_factor

    @property
    def image_tokens_per_viewpoint_token(self) -> int:
        return (self.viewpoint_factor // self.image_factor) ** 2

    @property
    def sh_channels(self) -> int:
        return 3 * (self.sh_degree + 1) ** 2

    @property
    def gaussian_channels(self) -> int:
        """Raw decoder channels per Gaussian."""
        return sum(self.raw_split())

    def raw_split(self) -> list[int]:
        """Widths of the raw decoder channels: released: offset, xyz, sh, scale, rotation, opacity.

        The footprint decoder has one depth channel instead of three, and a gate where depth is matched.
        """
        if self.decoder.kind == "released":
            return [2 if self.decoder.offset else 0, 3, self.sh_channels, 3, 4, 1]
        return [2, 1, self.sh_channels, 3, 4, 1, 1 if self.matching else 0]

    @staticmethod
    def released_two_view() -> ILRMConfig:
        """(2, F, F): the released RE10K weights."""
        return ILRMConfig(
            viewpoint_factor=1,
            uplift=1,
            viewpoint_channels=("moment", "direction"),
            image_channels=("rgb", "moment", "direction"),
            normalisation="raw",
            decoder=ReleasedDecoder(offset=False, sh_order="rgb_coefficient"),
        )

    @staticmethod
    def released_wide() -> ILRMConfig:
        """(V, H, F): the released undistorted-DL3DV weights (16 and 32 views)."""
        return ILRMConfig()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description, understood by ``from_dict``."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Any) -> ILRMConfig:
        """The config of a description. Fields that are left out, but for the decoder, have their defaults.

        Raises:
            ConfigError: unknown, impossible or contradictory fields (a file of a newer version, or of something else).
        """
        try:
            if isinstance(values, dict) and "decoder" not in values:
                raise ConfigError("it has no decoder.")
            return build(ILRMConfig, values)
        except ConfigError as error:
            raise ConfigError(
                f"This is no network config: {error.problem}",
                expected=error.expected or "the fields of ILRMConfig",
                fix="update ilrm, or convert the weights again",
            ) from error
