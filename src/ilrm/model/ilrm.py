"""The network: viewpoint tokens are refined layer by layer and decoded into Gaussians (paper Figure 2)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError, warn
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.core.precision import autocast_dtype
from ilrm.model.blocks import UpdateLayer
from ilrm.model.camera_encoding import CameraEncoding
from ilrm.model.compute import mini_batch
from ilrm.model.compute.compiling import CompileOptions, why_not
from ilrm.model.compute.graphs import Graphs
from ilrm.model.compute.half import cast_weights, with_cast_weights
from ilrm.model.compute.plan import Plan, Sizes, plan
from ilrm.model.config import ComputeConfig, FootprintDecoder, ILRMConfig
from ilrm.model.decode import DecoderInputs, GaussianLogits, PixelHead, decode
from ilrm.model.feedback import Feedback, Seen
from ilrm.model.hidden import fill_hidden, hidden_pixels
from ilrm.model.matching import Match, match_depth
from ilrm.model.matching.consistency import cross_check
from ilrm.model.matching.net import MatchingNet
from ilrm.model.matching.sparse import SparsePoints
from ilrm.model.tokens import (
    LAYER_NORM_EPS,
    PatchTokens,
    blocks,
    channel_count,
    fit_size,
    ray_maps,
    reduce,
    scale_intrinsics,
    unpatchify,
)

# Gaussians of the asked-for layers; what matching found; what feedback is told of it.
Prediction: TypeAlias = tuple[list[Gaussians], Match | None, Tensor | None]


class ILRM(nn.Module):
    """An iterative large 3D reconstruction model.

    Args:
        config: what it is made of; the parameters are drawn as in the paper (normal, standard deviation 0.02).
        compute: how it is computed; may be changed at any time (``model.compute = ...``).
    """

    def __init__(self, config: ILRMConfig, compute: ComputeConfig | None = None) -> None:
        super().__init__()
        self.config, self.compute = config, compute or ComputeConfig()
        p, d = config.patch_size, config.width
        self.viewpoint_tokens = PatchTokens(channel_count(config.viewpoint_channels), p, d)
        self.image_tokens = PatchTokens(channel_count(config.image_channels), p, d)
        self.layers = nn.ModuleList(UpdateLayer(config, i) for i in range(config.layers))
        self.decoder_norm = nn.LayerNorm(d, eps=LAYER_NORM_EPS, bias=False)
        self.decoder = nn.Linear(d, config.gaussian_channels * p**2, bias=False)
        self.apply(_initialise)
        if config.decoder.kind == "footprint":
            nn.init.zeros_(self.decoder.weight)
        # These start as no more than what the network does without them, so they keep their own initialisation.
        learned = config.matching if config.matching is not None and config.matching.channels else None
        self.matching = MatchingNet(learned.planes, learned.channels, fine=learned.fine > 0) if learned else None
        self.pixel_head = PixelHead(config) if config.pixel_head else None
        self.feedback = Feedback(config) if config.feedback else None
        self._compiled: CompileOptions | None = None
        self._graphs: Graphs[Prediction] | None = None
        self._decode = _decode

    @overload
    def forward(
        self,
        images: Tensor,
        c2w: Tensor,
        K: Tensor,
        *,
        mask: Tensor | None = None,
        points: SparsePoints | None = None,
        feedback: int | None = None,
        iterations: bool | Literal["feedback"] = False,
        with_match: Literal[False] = False,
    ) -> Gaussians: ...

    @overload
    def forward(
        self,
        images: Tensor,
        c2w: Tensor,
        K: Tensor,
        *,
        mask: Tensor | None = None,
        points: SparsePoints | None = None,
        feedback: int | None = None,
        iterations: bool | Literal["feedback"] = False,
        with_match: Literal[True],
    ) -> tuple[Gaussians, Match | None]: ...

    def forward(
        self,
        images: Tensor,
        c2w: Tensor,
        K: Tensor,
        *,
        mask: Tensor | None = None,
        points: SparsePoints | None = None,
        feedback: int | None = None,
        iterations: bool | Literal["feedback"] = False,
        with_match: bool = False,
    ) -> Gaussians | tuple[Gaussians, Match | None]:
        """Gaussians of posed images, in the frame of the cameras it is given.

        Args:
            images: (B, V, H, W, 3) in [0, 1]; any V and any size (stretched to the nearest one that patches divide).
            c2w: (B, V, 4, 4) camera-to-world, normalised as the config says (``ilrm.reconstruct`` does it).
            K: (B, V, 3, 3) intrinsics in pixels of the images.
            iterations: also decode after every earlier update layer and return every state; "feedback" returns only the
                decoder's and those of the feedback iterations.
            feedback: iterations that render, compare and correct after the decoder; as many as the config says by
                default. 0 is the plain network.
            mask: (B, V, H, W) bool, the pixels that count; all by default. The others are filled in from their
                surroundings and nothing is matched with them.
            points: sparse points in the frame of the cameras, as evidence for matching, where the network has it. CUDA
                graphs are not recorded with them.
            with_match: also return what plane-sweep matching found (None without it), as training supervises it.

        Returns:
            Gaussians (B, N), N = V * (H / r) * (W / r), in the order view, row, column. With ``iterations`` the
            batch is led by one more dimension: (layers + feedback, B, N), or (1 + feedback, B, N), the last one being
            the result.

        Raises:
            ConfigError: feedback of a network that has none, or a negative number.
        """
        rounds = self.feedback_iterations(feedback)
        if mask is not None:
            images = fill_hidden(images, mask)
        images, K = fit_size(images, K, self.config.size_multiple)
        grid = (images.shape[2] // self.config.viewpoint_factor, images.shape[3] // self.config.viewpoint_factor)
        hidden = () if mask is None else (hidden_pixels(mask, *grid),)
        with self._base_gradients():
            activated, match, known = self._predict((images, c2w, K, *hidden), points, every_layer=iterations is True)
        if rounds and self.feedback is not None:
            seen = self._seen(images, c2w, K, mask, grid, known)
            activated = [*activated, *self.feedback(activated[-1], seen, rounds)]
        gaussians = activated[-1]
        if iterations:
            gaussians = Gaussians(*(torch.stack([getattr(g, name) for g in activated]) for name in PER_GAUSSIAN))
        return (gaussians, match) if with_match else gaussians

    def _predict(self, given: tuple[Tensor, ...], points: SparsePoints | None, *, every_layer: bool) -> Prediction:
        """What comes before feedback, of (images, c2w, K) at a size that patches divide, and hidden pixels if there are
        any; from a CUDA graph where these are recorded, which would be another one for each number of points."""
        predict = partial(self._predict_at_once, points=points, every_layer=every_layer)
        if self._graphs is None or points is not None or not given[0].is_cuda or torch.is_grad_enabled():
            return predict(*given)
        places = tuple(x.data_ptr() for x in self.parameters())
        key = (every_layer, self.compute, self.training, autocast_dtype(given[0].device), places)
        return self._graphs(predict, given, key)

    def _predict_at_once(
        self,
        images: Tensor,
        c2w: Tensor,
        K: Tensor,
        hidden: Tensor | None = None,
        *,
        points: SparsePoints | None,
        every_layer: bool,
    ) -> Prediction:
        inputs = self.decoder_inputs(images, c2w, K, hidden, points)
        activated = [x.activate() for x in self.refine_tokens(images, c2w, K, inputs, every_layer=every_layer)]
        known = [x.channels().detach() for x in (inputs.match, inputs.consistency) if x is not None]
        return (
            activated,
            inputs.match,
            torch.cat(known, dim=-1).float() if self.feedback is not None and known else None,
        )

    def _base_gradients(self) -> AbstractContextManager[object]:
        """Nothing is kept for the gradient of what does not learn, as where feedback is trained on a frozen network."""
        frozen = self.feedback is not None and not self.decoder.weight.requires_grad
        return torch.no_grad() if frozen else nullcontext()

    def feedback_iterations(self, asked: int | None = None) -> int:
        """How many there will be where so many are asked for; None is the config's own number.

        Raises:
            ConfigError: some of a network that has none, or a negative number.
        """
        if asked is None:
            return 0 if self.config.feedback is None else self.config.feedback.iterations
        if asked < 0 or (asked and self.feedback is None):
            raise ConfigError(
                f"{asked} feedback iterations were asked of a network with{'' if self.feedback else 'out'} feedback.",
                expected="0 or more" if self.feedback else "0",
                fix="" if self.feedback else "use weights that were trained with it",
            )
        return asked

    def _seen(
        self, images: Tensor, c2w: Tensor, K: Tensor, mask: Tensor | None, grid: tuple[int, int], known: Tensor | None
    ) -> Seen:
        """What feedback looks at: photos at the size that patches divide, their cameras, what is known of the grid."""
        height, width = images.shape[2:4]
        if mask is not None:
            fitted = F.interpolate(mask.flatten(0, 1)[:, None].float(), (height, width))
            mask = fitted[:, 0].unflatten(0, mask.shape[:2]) > 0
        return Seen(images.float(), Cameras(c2w, K, width, height), grid, mask, known)

    def logits(
        self, images_BVHW3: Tensor, c2w_BV44: Tensor, K_BV33: Tensor, *, every_layer: bool = False
    ) -> list[GaussianLogits]:
        """As ``forward``, before the last activations: one element, or one per update layer."""
        images_BVHW3, K_BV33 = fit_size(images_BVHW3, K_BV33, self.config.size_multiple)
        inputs = self.decoder_inputs(images_BVHW3, c2w_BV44, K_BV33)
        return self.refine_tokens(images_BVHW3, c2w_BV44, K_BV33, inputs, every_layer=every_layer)

    def refine_tokens(
        self, images_BVHW3: Tensor, c2w_BV44: Tensor, K_BV33: Tensor, inputs: DecoderInputs, *, every_layer: bool
    ) -> list[GaussianLogits]:
        """The way from both token sets through the update layers to Gaussians; sizes already fit the patches."""
        config = self.config
        height, width = inputs.rgb.shape[2:4]
        rows, columns = height // config.patch_size, width // config.patch_size
        cameras = None
        if config.camera_encoding == "prope":
            cameras = CameraEncoding.of_views(inputs.c2w, inputs.K, height, width, config.patch_size, config.head_width)

        viewpoint_BTd = self.make_viewpoint_tokens(inputs)
        image_NMd = self.make_image_tokens(images_BVHW3, c2w_BV44, K_BV33, inputs)
        if not torch.is_grad_enabled() and (dtype := autocast_dtype(image_NMd.device)) is not None:
            image_NMd = image_NMd.to(dtype)  # once, and not in each layer
        subsets = [self._subset(i, rows, columns, image_NMd.device) for i in range(config.layers)]
        how = self._plan(viewpoint_BTd, image_NMd, subsets[0])
        decoded = []
        for i, (layer, subset) in enumerate(zip(self.layers, subsets, strict=True)):
            if self.compute.checkpoint and torch.is_grad_enabled():
                viewpoint_BTd = checkpoint(layer, viewpoint_BTd, image_NMd, subset, cameras, how, use_reentrant=False)
            else:
                viewpoint_BTd = layer(viewpoint_BTd, image_NMd, subset, cameras, how)
            if every_layer or i == len(self.layers) - 1:
                decoded.append(self.decode(viewpoint_BTd, inputs))
        return decoded

    def _subset(self, layer: int, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The mini-batch of a layer, on a viewpoint grid of this many patches."""
        finer = self.config.viewpoint_factor // self.config.image_factor
        kind = self.compute.mini_batch
        return mini_batch.subset(kind, layer, rows, columns, finer, training=self.training, device=device)

    def _plan(self, viewpoint_BTd: Tensor, image_NMd: Tensor, subset: tuple[Tensor, Tensor] | None) -> Plan:
        """How layers compute on these tokens, or on such subsets of each view's."""
        B, N, device = viewpoint_BTd.shape[0], image_NMd.shape[0], image_NMd.device
        views = N // B
        of_view = (viewpoint_BTd.shape[1] // views, image_NMd.shape[1])
        viewpoint, image = of_view if subset is None else map(len, subset)
        dtype = autocast_dtype(device) or viewpoint_BTd.dtype
        sizes, timed = Sizes(B, views, viewpoint, image), self._compiled is None  # a compiler chooses by itself
        return plan(self.config, sizes, device, dtype, self.compute.attention, timed=timed)

    def decoder_inputs(
        self,
        images_BVHW3: Tensor,
        c2w_BV44: Tensor,
        K_BV33: Tensor,
        hidden_BVHW: Tensor | None = None,
        points: SparsePoints | None = None,
    ) -> DecoderInputs:
        """Cameras, colours and matched depth on the viewpoint grid, on which pixels may be hidden."""
        r = self.config.viewpoint_factor
        rgb = reduce(images_BVHW3, r) if r > 1 else images_BVHW3
        K = scale_intrinsics(K_BV33, 1 / r, 1 / r)
        match = consistency = None
        if self.config.matching is not None:
            match = match_depth(rgb, c2w_BV44, K, self.config, self.matching, hidden_BVHW, points)
        if match is not None and self.config.cross_checks and isinstance(self.config.decoder, FootprintDecoder):
            consistency = cross_check(match, rgb, c2w_BV44, K, self.config.decoder, hidden_BVHW)
        return DecoderInputs(c2w_BV44, K, rgb, blocks(images_BVHW3, r), match, consistency)

    def make_viewpoint_tokens(self, inputs: DecoderInputs) -> Tensor:
        """(B, T, d): camera rays alone, on the viewpoint grid."""
        height, width = inputs.rgb.shape[2:4]
        maps = ray_maps(inputs.c2w, inputs.K, width, height)
        return self.viewpoint_tokens(torch.cat([maps[name] for name in self.config.viewpoint_channels], dim=-1))

    def make_image_tokens(
        self, images_BVHW3: Tensor, c2w_BV44: Tensor, K_BV33: Tensor, inputs: DecoderInputs
    ) -> Tensor:
        """(B * V, M, d): pixels in [-1, 1] with their rays, at full resolution (or 1 / image_factor of it)."""
        factor = self.config.image_factor
        if factor > 1:
            images_BVHW3 = reduce(images_BVHW3, factor)
            K_BV33 = scale_intrinsics(K_BV33, 1 / factor, 1 / factor)
        B, V, height, width, _ = images_BVHW3.shape
        maps = ray_maps(c2w_BV44, K_BV33, width, height)
        maps["rgb"] = 2 * images_BVHW3 - 1
        if inputs.match is not None:
            maps["match"] = self._on_image_grid(inputs.match.channels())
        if inputs.consistency is not None:
            maps["consistency"] = self._on_image_grid(inputs.consistency.channels())
        tokens_BTd = self.image_tokens(torch.cat([maps[name] for name in self.config.image_channels], dim=-1))
        return tokens_BTd.reshape(B * V, -1, tokens_BTd.shape[-1])

    def _on_image_grid(self, map_BVHWC: Tensor) -> Tensor:
        """A map of the viewpoint grid, repeated for the pixels that image tokens are made of."""
        finer = self.config.viewpoint_factor // self.config.image_factor
        return map_BVHWC.repeat_interleave(finer, 2).repeat_interleave(finer, 3)

    def decode(self, viewpoint_BTd: Tensor, inputs: DecoderInputs) -> GaussianLogits:
        """Gaussians of the tokens as they stand after some update layer."""
        return self._decode(self, viewpoint_BTd, inputs)

    def compile(
        self,
        *,
        backend: str | Callable[..., Any] = "inductor",
        mode: str | None = None,
        fullgraph: bool = False,
        dynamic: bool | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Compile update layers, matching network and decoder with torch.compile, in place.

        They are compiled at the first call, which takes a minute, and again for other sizes: worth it where many scenes
        of one size follow each other, or in training. Results differ by rounding only. Without a compiler the network
        stays as it is, and a warning says so. Copies of the network are not compiled.

        Args:
            backend, fullgraph, dynamic: as in torch.compile.
            mode: as in torch.compile. "reduce-overhead" also records forward passes without gradients as CUDA graphs,
                one for each size, which spares a GPU the time between its kernels; it is the default in evaluation mode
                on a GPU.
            device: that the network will be on; by default where it is.
        """
        device = device or self.decoder.weight.device
        if (lacking := why_not(device, backend)) is not None:
            warn(f"The network is not compiled, it runs as it is: {lacking}.")
            return
        if mode is None and device.type == "cuda" and not self.training:
            mode = "reduce-overhead"
        self._compile_parts(CompileOptions(backend, mode, fullgraph, dynamic))

    def _compile_parts(self, options: CompileOptions) -> None:
        options.modules([*self.layers, *([] if self.matching is None else [self.matching])])
        self._decode, self._compiled = options.function(_decode), options
        self._graphs = Graphs(_clone) if options.graphs else None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_decode": _decode, "_compiled": None, "_graphs": None}

    def cast_weights(self) -> ILRM:
        """Keep the weights of matrix products in bf16, in place, for inference in bf16; returns the network.

        Half the memory, and the same results as in bf16 autocast, which would cast them at every call. The network can
        no longer be trained, nor compute in fp32.
        """
        return cast_weights(self)

    def for_bf16(self) -> ILRM:
        """This network with such weights, for inference in bf16 autocast; what is not cast is shared.

        It is kept, and made anew when a parameter has changed.
        """
        network = with_cast_weights(self)
        if network is not self:
            network.compute = self.compute
            if network._compiled != self._compiled and self._compiled is not None:
                network._compile_parts(self._compiled)
        return network

    @classmethod
    def from_pretrained(cls, source: str | Path) -> ILRM:
        """The network of a name (``ilrm weights list``), a path or a hub id, in evaluation mode on the CPU.

        Raises:
            WeightsError: no such weights, no connection, or a file that cannot be used; says which.
        """
        # The one import that points right: this is where users look for it, and only a call follows it.
        from ilrm.model.weights import from_pretrained

        return from_pretrained(source)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a ``.safetensors`` file, or a folder with ``config.json`` and ``model.safetensors``."""
        from ilrm.model.weights import save_weights

        save_weights(self, path)

    def parameter_count(self) -> int:
        """Number of learned values."""
        return sum(x.numel() for x in self.parameters())


def _clone(prediction: Prediction) -> Prediction:
    states, match, known = prediction
    return (
        [state.map(torch.clone) for state in states],
        None if match is None else match.map(torch.clone),
        None if known is None else known.clone(),
    )


def _decode(model: ILRM, viewpoint_BTd: Tensor, inputs: DecoderInputs) -> GaussianLogits:
    raw_BTc = model.decoder(model.decoder_norm(viewpoint_BTd))
    V, height, width = inputs.rgb.shape[1:4]
    raw_BVHWC = unpatchify(raw_BTc, V, height, width, model.config.patch_size)
    if model.pixel_head is not None:
        raw_BVHWC = raw_BVHWC + model.pixel_head(raw_BVHWC, inputs)
    return decode(raw_BVHWC, inputs, model.config)


def _initialise(module: nn.Module) -> None:
    # On the meta device there is nothing to draw, and drawing it imports torch's compiler for seconds.
    if isinstance(module, nn.Linear) and not module.weight.is_meta:
        nn.init.normal_(module.weight, std=0.02)
