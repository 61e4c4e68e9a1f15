"""The four parts of a model that engines stand in for, each as one module that can be traced."""

# Shape letters:  B images   R regions, from any number of images   S tokens of one prompt
#                 T tokens of SAM's decoder   N image tokens   D prompt width   M masks (4)
#                 H, W embedding grid   Q caption queries (heads x tokens)
#                 E = D, or 4 D with high-res features

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from sca_batch.errors import ScaError
from sca_batch.model.mixer import TextFeatureMixer
from sca_batch.model.sam import MaskDecoder, encode_prompts, high_res_of, with_high_res
from sca_batch.model.sca import ScaModel
from sca_batch.model.two_way import absorbing_pays

__all__ = ["GRAPHS", "GraphFacts", "build_graph", "example_inputs", "input_sizes"]

C = TypeVar("C", bound=PreTrainedConfig)
M = TypeVar("M", bound=nn.Module)

PROMPT_TOKENS = 2  # of a box, or of one point and its padding


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """The inputs and outputs of a graph, and its axes that have no fixed size.

    `axes` names the open sizes of each input in order, None where the model fixes the size.
    Tolerances are on the relative error of the worst output, by precision; the encoder's in int8 is
    that of the worst image.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: dict[str, tuple[str | None, ...]]
    tolerance: dict[str, float]


_TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 5e-2}

GRAPHS: dict[str, GraphFacts] = {
    "encoder": GraphFacts(
        inputs=("pixels",),
        outputs=("embedding",),
        axes={"pixels": ("images", None, None, None)},
        tolerance={**_TOLERANCE, "int8": 0.2},
    ),
    "decoder": GraphFacts(
        inputs=("embedding", "sparse"),
        outputs=("tokens", "features"),
        axes={"embedding": (None, None, None, None), "sparse": ("regions", "prompt_tokens", None)},
        tolerance=_TOLERANCE,
    ),
    "upscale": GraphFacts(
        inputs=("tokens", "features"),
        outputs=("masks",),
        axes={"tokens": ("regions", "tokens", None), "features": ("regions", None, None)},
        tolerance=_TOLERANCE,
    ),
    "mixer": GraphFacts(
        inputs=("embedding", "sparse", "image"),
        outputs=("queries", "iou"),
        axes={
            "embedding": ("images", None, None, None),
            "sparse": ("regions", "prompt_tokens", None),
            "image": ("regions",),
        },
        tolerance=_TOLERANCE,
    ),
}


class Graph(nn.Module):
    """All that the four have in common: the dtype they compute in, and constants of the model."""

    dtype: torch.dtype = torch.float32
    position: Tensor  # (1, D, H, W): where image tokens lie
    no_mask: Tensor  # (1, D, H, W): the dense prompt that stands for none

    def _keep_codes(self, model: ScaModel) -> None:
        no_mask_1D = model.prompt_encoder.no_mask_embed.weight.detach()
        grid = model.config.grid_size
        self.register_buffer("position", model.position_code().detach().clone())
        self.register_buffer(
            "no_mask", no_mask_1D[:, :, None, None].expand(-1, -1, grid, grid).clone()
        )


class EncoderGraph(Graph):
    """Normalised, padded pixels (B, 3, S, S) -> image embeddings (B, E, H, W).

    Any encoder of the model: SAM's, a transformer of timm, or a convolutional network.
    """

    def __init__(self, model: ScaModel) -> None:
        super().__init__()
        encoder = model.vision_encoder
        if isinstance(encoder, SamVisionEncoder):
            # The class of its attention is chosen when it is made.
            config = _eager(model.config.sam.vision_config)
            self.vision_encoder = _same_weights(lambda: SamVisionEncoder(config), encoder)
        else:
            self.vision_encoder = _copy_on_same_memory(encoder)
            for module in self.vision_encoder.modules():
                if hasattr(module, "fused_attn"):  # timm's switch
                    module.fused_attn = False

    def forward(self, pixels: Tensor) -> Tensor:
        encoded = self.vision_encoder(pixels.to(self.dtype))
        embedding: Tensor = encoded if isinstance(encoded, Tensor) else encoded.last_hidden_state
        return embedding.float()


class DecoderGraph(Graph):
    """SAM's two-way transformer for prompts of one image: tokens (R, T, D), features (R, N, D)."""

    def __init__(self, model: ScaModel) -> None:
        super().__init__()
        self.mask_decoder, self.absorbed = _decoder(model)
        self._keep_codes(model)

    def forward(self, embedding: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        tokens_RTD, features_RND = self.mask_decoder.fuse(
            embedding.to(self.dtype),
            sparse.to(self.dtype),
            self.no_mask,
            self.position,
            absorbed=self.absorbed,
        )
        return tokens_RTD.float(), features_RND.float()


class UpscaleGraph(Graph):
    """Tokens (R, T, D) and image tokens (R, N, E) -> low-res mask logits (R, M, 4H, 4W).

    High-res features, where the model has any, stand behind the D channels of every image token:
    one input for every model.
    """

    def __init__(self, model: ScaModel) -> None:
        super().__init__()
        self.mask_decoder, _ = _decoder(model)
        for name in ("upscale_conv1", "upscale_conv2"):
            setattr(self.mask_decoder, name, _Upscale2(getattr(self.mask_decoder, name)))

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        features, width = features.to(self.dtype), tokens.shape[-1]
        high_res = features[..., width:] if features.shape[-1] > width else None
        masks_RMHW = self.mask_decoder.predict_masks(
            tokens.to(self.dtype), features[..., :width], high_res
        )
        return masks_RMHW.float()


class MixerGraph(Graph):
    """Prompts of many images -> caption queries (R, Q, D) and predicted IoU (R, M).

    SAM's own layers run inside, so that their image tokens, 4 MiB a region, cross no boundary.
    """

    def __init__(self, model: ScaModel) -> None:
        super().__init__()
        self.mask_decoder, self.absorbed = _decoder(model)
        decoder = _eager(model.config.sam.mask_decoder_config)
        num_queries, depth = len(model.mixer.queries.weight), model.config.mixer_layers
        self.mixer = _same_weights(
            lambda: TextFeatureMixer(decoder, depth=depth, num_queries=num_queries), model.mixer
        )
        self._keep_codes(model)

    def forward(self, embedding: Tensor, sparse: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        tokens_RTD, features_RND = self.mask_decoder.fuse(
            embedding.to(self.dtype).index_select(0, image),
            sparse.to(self.dtype),
            self.no_mask,
            self.position,
            absorbed=self.absorbed,
        )
        queries_RQD = self.mixer(tokens_RTD, features_RND, self.position.flatten(2).transpose(1, 2))
        return queries_RQD.float(), self.mask_decoder.predict_iou(tokens_RTD).float()


_MODULES: dict[str, Callable[[ScaModel], Graph]] = {
    "encoder": EncoderGraph,
    "decoder": DecoderGraph,
    "upscale": UpscaleGraph,
    "mixer": MixerGraph,
}


def build_graph(
    model: ScaModel, name: str, *, dtype: torch.dtype = torch.float32, keep_fp32: Sequence[str] = ()
) -> Graph:
    """One graph with the model's weights, in evaluation mode; inputs and outputs are float32.

    Args:
        dtype: what it computes in, float16 and bfloat16 with weights of that kind. The model's
            own weights are not touched.
        keep_fp32: patterns of submodule names (`vision_encoder.layers.*.layer_norm1`) that
            compute in float32 all the same.

    Raises:
        ScaError: where a pattern matches no submodule.
    """
    graph = _MODULES[name](model).eval().requires_grad_(False)
    if dtype is torch.float32:
        return graph
    kept = _matching(graph, name, keep_fp32)
    graph.to(dtype)
    graph.dtype = dtype
    for path in kept:
        parent = graph.get_submodule(path.rpartition(".")[0])
        child = path.rpartition(".")[2]
        original = dict(_MODULES[name](model).named_modules())[path]
        setattr(parent, child, _InFloat32(original.eval().requires_grad_(False), dtype))
    return graph


class _Upscale2(nn.Module):
    """A transposed convolution that doubles each side (2 x 2 cells, stride 2), without overlap.

    The same thing as a matrix product per cell: TensorRT has no transposed convolution in bfloat16.
    """

    def __init__(self, convolution: nn.ConvTranspose2d) -> None:
        super().__init__()
        assert convolution.kernel_size == convolution.stride == (2, 2)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, cells_RCHW: Tensor) -> Tensor:
        """(R, C, H, W) -> (R, C', 2H, 2W)."""
        num_out, (height, width) = self.weight.shape[1], cells_RCHW.shape[2:]
        # (R, H, W, C) x (C, C' * 2 * 2): what one cell gives to its four.
        four = cells_RCHW.permute(0, 2, 3, 1) @ self.weight.flatten(1)
        four = four.reshape(four.shape[0], height, width, num_out, 2, 2)
        doubled = four.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return doubled if self.bias is None else doubled + self.bias[:, None, None]


class _InFloat32(nn.Module):
    """A module that computes in float32 between neighbours in half precision."""

    def __init__(self, module: nn.Module, around: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.around = around

    def forward(self, *inputs: object, **named: object) -> object:
        outputs = self.module(
            *(_cast(value, torch.float32) for value in inputs),
            **{name: _cast(value, torch.float32) for name, value in named.items()},
        )
        if isinstance(outputs, tuple):
            return tuple(_cast(value, self.around) for value in outputs)
        return _cast(outputs, self.around)


def _cast(value: object, dtype: torch.dtype) -> object:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _matching(graph: nn.Module, name: str, patterns: Sequence[str]) -> list[str]:
    """The outermost submodules that the patterns name."""
    paths = [path for path, _ in graph.named_modules() if path]
    found: list[str] = []
    for pattern in patterns:
        matching = fnmatch.filter(paths, pattern)
        if not matching:
            raise ScaError(
                f"keep_fp32 {pattern!r} names nothing in the graph {name}; its modules are called "
                f"like {', '.join(paths[:3])}"
            )
        found += matching
    return [p for p in dict.fromkeys(found) if not any(p.startswith(f"{q}.") for q in found)]


def input_sizes(model: ScaModel, name: str) -> dict[str, tuple[int | str, ...]]:
    """The shape of each input: numbers where the model fixes them, names where they are open."""
    config = model.config
    grid, width, side = config.grid_size, config.width, config.image_size
    shapes: dict[str, tuple[int, ...]] = {
        "pixels": (0, config.sam.vision_config.num_channels, side, side),
        "embedding": (1, config.embedding_width, grid, grid),
        "sparse": (0, 0, width),
        "tokens": (0, 0, width),
        "features": (0, grid * grid, config.embedding_width),
        "image": (0,),
    }
    return {
        key: tuple(
            size if axis is None else axis
            for size, axis in zip(shapes[key], GRAPHS[name].axes[key], strict=True)
        )
        for key in GRAPHS[name].inputs
    }


def example_inputs(
    model: ScaModel, name: str, *, images: int = 2, regions: int = 3, prompt_tokens: int = 2
) -> tuple[Tensor, ...]:
    """Inputs such as the graph meets: made by the torch model from noise and boxes drawn at random.

    The same every time. Sizes differ from one another, so that a trace cannot take them for equal.
    """
    random = torch.Generator().manual_seed(0)
    device, side = model.device, model.config.image_size
    pixels = torch.randn(images, 3, side, side, generator=random).to(device)
    if name == "encoder":
        return (pixels,)
    grid, width = model.config.grid_size, model.config.embedding_width
    # A neck ends in a layer norm, so that an embedding has about unit variance.
    embedding = torch.randn(images, width, grid, grid, generator=random).to(device)
    if prompt_tokens == PROMPT_TOKENS:
        corners = torch.rand(regions, 2, 2, generator=random).sort(dim=1).values * side
        prompts = {"boxes_R4": corners.reshape(regions, 4).to(device)}
    else:
        points = torch.rand(regions, prompt_tokens - 1, 2, generator=random) * side
        prompts = {"points_RP2": points.to(device)}
    with torch.inference_mode():
        sparse, _ = encode_prompts(model.prompt_encoder, **prompts)
        if name == "decoder":
            return embedding[:1].clone(), sparse.clone()
        if name == "mixer":
            image = torch.arange(regions, device=device) % images
            return embedding.clone(), sparse.clone(), image
        tokens, features = model.fuse_prompts(embedding[:1], **prompts)
        features = with_high_res(features, high_res_of(embedding[:1], model.config.width))
    return tokens.clone(), features.clone()


def _eager(config: C) -> C:
    """The same sizes; attention written out, which exports to fewer nodes than the fused form."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    return config


def _same_weights(make: Callable[[], M], source: nn.Module) -> M:
    """A new module whose parameters are the memory of another's."""
    with torch.device("meta"):
        module = make()
    module.load_state_dict(source.state_dict(), assign=True)
    return module


def _copy_on_same_memory(source: nn.Module) -> nn.Module:
    """A copy of a module whose parameters and buffers are the memory of the original's."""
    same: dict[int, object] = {id(p): nn.Parameter(p.detach()) for p in source.parameters()}
    same |= {id(b): b.detach() for b in source.buffers()}
    return copy.deepcopy(source, same)


def _decoder(model: ScaModel) -> tuple[MaskDecoder, bool]:
    config = _eager(model.config.sam.mask_decoder_config)
    decoder = _same_weights(lambda: MaskDecoder(config), model.mask_decoder)
    num_tokens = 1 + decoder.num_mask_tokens + PROMPT_TOKENS
    return decoder, absorbing_pays(decoder.transformer, num_tokens)
