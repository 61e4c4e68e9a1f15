"""Running a TensorRT execution context on torch tensors: pieces, addresses, memory, CUDA graphs.

Written to the API that both flavours of TensorRT document; a stand-in that runs the same ONNX file
on the same addresses stands in for the context in the tests. Never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sca_batch.engines.graphs import GRAPHS
from sca_batch.engines.plans import PlanFacts
from sca_batch.errors import ScaError
from sca_batch.model.memory import Allowance, fit, is_out_of_memory

__all__ = ["Capture", "Context", "Execution", "capture_cuda_graph"]

# Gives a callable that repeats what its argument queued on the stream that it was given.
Capture = Callable[[Callable[[int], None]], Callable[[], None]]
# Shapes that have a CUDA graph of their own; each holds its inputs and outputs. Others run without.
MOST_CAPTURED = 16


class Context(Protocol):
    """As much of TensorRT's execution context as is used; addresses are of the device's memory."""

    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...
    def set_tensor_address(self, name: str, address: int, /) -> object: ...
    def infer_shapes(self) -> Sequence[str]: ...
    def get_tensor_shape(self, name: str, /) -> Sequence[int]: ...
    def execute_async_v3(self, stream: int, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Captured:
    """A recorded run at fixed addresses."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]


class Execution:
    """Runs an execution context on torch tensors, in pieces that fit its profile.

    Nothing is copied to the host and nothing waits: work is queued on the current stream, in whose
    order the tensors' memory is used again. A piece that the device's memory does not suffice for
    is halved, which is remembered; sizes grow back.

    Args:
        stream: the handle of the stream to queue on.
        reason: the library's own words about what went wrong last.
        capture: records CUDA graphs, for a library that does not do so itself. Shapes that come
            back are replayed from the third time on; their inputs are copied to fixed addresses.
    """

    def __init__(
        self,
        context: Context,
        facts: PlanFacts,
        *,
        stream: Callable[[], int],
        reason: Callable[[], str] = lambda: "it does not say why",
        capture: Capture | None = None,
    ) -> None:
        self._context = context
        self._graph = facts.graph
        self._stream, self._reason, self._capture = stream, reason, capture
        self._inputs, self._outputs = GRAPHS[facts.graph].inputs, GRAPHS[facts.graph].outputs
        self._most: Mapping[str, Sequence[int]] = {n: s[2] for n, s in facts.shapes.items()}
        axes = GRAPHS[self._graph].axes
        axis = "images" if self._graph == "encoder" else "regions"
        self._split = [axes[name][0] == axis for name in self._inputs]
        self._counted = self._split.index(True)
        most = self._most[self._inputs[self._counted]][0]
        self._allowance = Allowance(f"{axis} at a time in the plan of {self._graph}", most)
        self._captured: dict[tuple[tuple[int, ...], ...], _Captured] = {}
        self._met: set[tuple[tuple[int, ...], ...]] = set()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs.

        Raises:
            torch.OutOfMemoryError: when the device's memory does not suffice for one at a time.
            ScaError: for sizes beyond the profile, and for any other failure of the library.
        """
        outputs = fit(partial(self._in_pieces, inputs), self._allowance)
        if outputs is None:
            # What called this may hold less at a time, and try again.
            raise torch.OutOfMemoryError(f"out of memory: one at a time in {self._graph}")
        return outputs

    def _in_pieces(self, inputs: tuple[Tensor, ...], at_once: int) -> tuple[Tensor, ...]:
        try:
            pieces = [self._run(piece) for piece in self._pieces(inputs, at_once)]
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                # Memory that is there for speed only, and would be asked for again and again.
                self._captured.clear()
                self._capture = None
            raise
        if len(pieces) == 1:
            return pieces[0]
        return tuple(torch.cat(outputs) for outputs in zip(*pieces, strict=True))

    def _pieces(self, inputs: tuple[Tensor, ...], at_once: int) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, inputs[self._counted].shape[0], at_once):
            piece = [
                value[start : start + at_once] if parted else value
                for value, parted in zip(inputs, self._split, strict=True)
            ]
            if self._graph == "mixer" and piece[0].shape[0] > self._most["embedding"][0]:
                # One image for each region: which of them are needed is not read from the device.
                piece[0] = piece[0].index_select(0, piece[2])
                piece[2] = torch.arange(piece[2].shape[0], device=piece[2].device)
            yield tuple(value.contiguous() for value in piece)

    def _run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shapes = tuple(tuple(value.shape) for value in inputs)
        if captured := self._captured.get(shapes):
            for fixed, value in zip(captured.inputs, inputs, strict=True):
                fixed.copy_(value)
            captured.replay()
            # Cloned: the next replay writes to the same memory.
            return tuple(value.clone() for value in captured.outputs)
        if self._capture and shapes in self._met and len(self._captured) < MOST_CAPTURED:
            inputs = tuple(value.clone() for value in inputs)
            outputs = self._bind(inputs)
            # An ordinary run first: the library prepares itself for a shape, which is not recorded.
            self._enqueue(self._stream())
            replay = self._capture(self._enqueue)
            self._captured[shapes] = _Captured(inputs, outputs, replay)
            return tuple(value.clone() for value in outputs)
        self._met.add(shapes)
        outputs = self._bind(inputs)
        self._enqueue(self._stream())
        return outputs

    def _bind(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tells the context where inputs are and outputs go; returns the outputs, not yet there."""
        context = self._context
        for name, value in zip(self._inputs, inputs, strict=True):
            if not context.set_input_shape(name, tuple(value.shape)):
                raise ScaError(
                    f"{self._graph}: {name} of shape {tuple(value.shape)} is beyond what the plan "
                    f"was built for, at most {tuple(self._most[name])}. Build it for more: "
                    "sca engine build --set prompt_tokens=..."
                )
            context.set_tensor_address(name, value.data_ptr())
        missing = context.infer_shapes()
        assert not missing, f"inputs without a shape: {missing}"
        outputs = tuple(
            torch.empty(tuple(context.get_tensor_shape(name)), device=inputs[0].device)
            for name in self._outputs
        )
        for name, value in zip(self._outputs, outputs, strict=True):
            context.set_tensor_address(name, value.data_ptr())
        return outputs

    def _enqueue(self, stream: int) -> None:
        if self._context.execute_async_v3(stream):
            return
        reason = self._reason()
        if "out of memory" in reason.lower():
            raise torch.OutOfMemoryError(f"out of memory: {self._graph}: {reason}")
        raise ScaError(f"{self._graph}: TensorRT could not run its plan: {reason}")


def capture_cuda_graph(run: Callable[[int], None]) -> Callable[[], None]:
    """Records what `run` queues as a CUDA graph; the callable queues it on the current stream."""
    graph = torch.cuda.CUDAGraph()
    # Other threads go on copying masks meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run(torch.cuda.current_stream().cuda_stream)
    replay: Callable[[], None] = graph.replay
    return replay
