"""The Triton kernels compile for Hopper on any Linux machine; what a GPU would run is looked at, not run."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton has no wheel for this platform")
if platform.machine() not in ("x86_64", "AMD64"):
    pytest.skip("the assembler in the wheel is for x86-64", allow_module_level=True)

from trainer.kernels import fused_triton, rows_triton  # noqa: E402

NUMBERS = {"stride", "out_stride", "count", "vocabulary", "width", "first"}
FLOATS = {"scale", "cap", "kept_cut"}
INTEGER_POINTERS = {"target": "*i64", "argmax": "*i64", "places": "*i32"}


def compiled(kernel, constants: dict, types: dict[str, str], *, warps: int = 4, stages: int = 3):
    """Return a kernel compiled for compute capability 9.0, as for a vocabulary that is a multiple of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "*fp32" for name in names}
    signature |= {name: "i32" for name in names if name in NUMBERS} | {name: "fp32" for name in names if name in FLOATS}
    signature |= {name: kind for name, kind in INTEGER_POINTERS.items() if name in names}
    signature |= types | {name: "constexpr" for name in constants}
    even = [name for name, kind in signature.items() if kind.startswith("*") or name in NUMBERS - {"count", "first"}]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in even},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages})


def spilled(kernel, folder: Path) -> int:
    """Return how many bytes of registers a thread spills."""
    program = folder / "kernel.cubin"
    program.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "--dump-resource-usage", program], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", text)[1])


@pytest.mark.parametrize("full", [False, True])
def test_row_statistics_compile_without_spilling(full: bool, tmp_path) -> None:
    flags = dict.fromkeys(("BIASED", "CAPPED", "MOMENTS", "SECOND", "KEPT"), full)
    block = rows_triton.block(151_936, heavy=full)
    assert spilled(compiled(rows_triton._statistics, {**flags, "BLOCK": block}, {}), tmp_path) == 0


def test_the_gradient_rounds_to_nearest_and_reads_before_it_writes(tmp_path) -> None:
    flags = dict.fromkeys(("BIASED", "CAPPED", "SECOND", "KEPT", "NUCLEUS"), True)
    flags["BLOCK"] = rows_triton.block(151_936, heavy=False)
    kernel = compiled(rows_triton._gradient, flags, {"out": "*bf16"})
    text = kernel.asm["ptx"]
    assert spilled(kernel, tmp_path) == 0
    assert "cvt.rn.bf16" in text
    assert "ld.global.nc" not in text, "the read-only cache may serve what was overwritten"
    last_load, barrier, first_store = text.rindex("ld.global.v4"), text.index("bar.sync"), text.index("st.global")
    assert last_load < barrier < first_store


def test_the_fused_forward_uses_the_tensor_cores_and_bulk_copies(tmp_path) -> None:
    tiling = fused_triton.TILINGS["narrow"]
    flags = {"BIASED": False, "CAPPED": False, "MOMENTS": True, "SECOND": False, "SHARES": 16, "GROUP": 16}
    sizes = {"ROWS": tiling.rows, "COLUMNS": tiling.columns, "DEPTH": tiling.depth}
    types = {
        "hidden": f"tensordesc<bf16[{tiling.rows}, {tiling.depth}]>",
        "weight": f"tensordesc<bf16[{tiling.columns}, {tiling.depth}]>",
        "bias": "*bf16",
    }
    kernel = compiled(fused_triton._share, flags | sizes, types, warps=tiling.warps, stages=tiling.stages)
    assert spilled(kernel, tmp_path) < 64
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    assert "cp.async.bulk.tensor" in kernel.asm["ptx"]
    assert "f32.bf16.bf16" in kernel.asm["ptx"], "float32 accumulators"
