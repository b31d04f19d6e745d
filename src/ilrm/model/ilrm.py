"""The network: viewpoint tokens are refined layer by layer and decoded into Gaussians (paper Figure 2)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ilrm.core.cameras import Cameras
from ilrm.core.errors import ConfigError
from ilrm.core.gaussians import PER_GAUSSIAN, Gaussians
from ilrm.model import mini_batch
from ilrm.model.blocks import UpdateLayer
from ilrm.model.camera_encoding import CameraEncoding
from ilrm.model.config import ComputeConfig, FootprintDecoder, ILRMConfig
from ilrm.model.decode import DecoderInputs, GaussianLogits, PixelHead, decode
from ilrm.model.feedback import Feedback, Seen
from ilrm.model.hidden import fill_hidden, hidden_pixels
from ilrm.model.matching import Match, match_depth
from ilrm.model.matching.consistency import cross_check
from ilrm.model.matching.net import MatchingNet
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

    @overload
    def forward(
        self,
        images: Tensor,
        c2w: Tensor,
        K: Tensor,
        *,
        mask: Tensor | None = None,
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
        with self._base_gradients():
            inputs = self.decoder_inputs(images, c2w, K, None if mask is None else hidden_pixels(mask, *grid))
            every_layer = iterations is True
            activated = [x.activate() for x in self.refine_tokens(images, c2w, K, inputs, every_layer=every_layer)]
        if rounds and self.feedback is not None:
            seen = self._seen(images, c2w, K, mask, inputs)
            activated += self.feedback(activated[-1], seen, rounds)
        gaussians = activated[-1]
        if iterations:
            gaussians = Gaussians(*(torch.stack([getattr(g, name) for g in activated]) for name in PER_GAUSSIAN))
        return (gaussians, inputs.match) if with_match else gaussians

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

    def _seen(self, images: Tensor, c2w: Tensor, K: Tensor, mask: Tensor | None, inputs: DecoderInputs) -> Seen:
        """What feedback looks at: photos at the size that patches divide, their cameras, what is known of the grid."""
        height, width = images.shape[2:4]
        if mask is not None:
            fitted = F.interpolate(mask.flatten(0, 1)[:, None].float(), (height, width))
            mask = fitted[:, 0].unflatten(0, mask.shape[:2]) > 0
        known = [x.channels().detach() for x in (inputs.match, inputs.consistency) if x is not None]
        return Seen(
            images.float(),
            Cameras(c2w, K, width, height),
            (inputs.rgb.shape[2], inputs.rgb.shape[3]),
            mask,
            torch.cat(known, dim=-1).float() if known else None,
        )

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
        decoded = []
        for i, layer in enumerate(self.layers):
            subset = mini_batch.subset(
                self.compute.mini_batch,
                i,
                rows,
                columns,
                config.viewpoint_factor // config.image_factor,
                training=self.training,
                device=image_NMd.device,
            )
            if self.compute.checkpoint and torch.is_grad_enabled():
                viewpoint_BTd = checkpoint(layer, viewpoint_BTd, image_NMd, subset, cameras, use_reentrant=False)
            else:
                viewpoint_BTd = layer(viewpoint_BTd, image_NMd, subset, cameras)
            if every_layer or i == len(self.layers) - 1:
                decoded.append(self.decode(viewpoint_BTd, inputs))
        return decoded

    def decoder_inputs(
        self, images_BVHW3: Tensor, c2w_BV44: Tensor, K_BV33: Tensor, hidden_BVHW: Tensor | None = None
    ) -> DecoderInputs:
        """Cameras, colours and matched depth on the viewpoint grid, on which pixels may be hidden."""
        r = self.config.viewpoint_factor
        rgb = reduce(images_BVHW3, r) if r > 1 else images_BVHW3
        K = scale_intrinsics(K_BV33, 1 / r, 1 / r)
        match = consistency = None
        if self.config.matching is not None:
            match = match_depth(rgb, c2w_BV44, K, self.config, self.matching, hidden_BVHW)
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
        raw_BTc = self.decoder(self.decoder_norm(viewpoint_BTd))
        V, height, width = inputs.rgb.shape[1:4]
        raw_BVHWC = unpatchify(raw_BTc, V, height, width, self.config.patch_size)
        if self.pixel_head is not None:
            raw_BVHWC = raw_BVHWC + self.pixel_head(raw_BVHWC, inputs)
        return decode(raw_BVHWC, inputs, self.config)

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


def _initialise(module: nn.Module) -> None:
    # On the meta device there is nothing to draw, and drawing it imports torch's compiler for seconds.
    if isinstance(module, nn.Linear) and not module.weight.is_meta:
        nn.init.normal_(module.weight, std=0.02)
