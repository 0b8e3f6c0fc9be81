"""The kernels of trivial.cu."""

from pathlib import Path

from cupy_rnnt.ops.cuda.launch import BLOCK, WARP, Kernel

SOURCE = str(Path(__file__).with_suffix(".cu"))
SCALED = Kernel("scaled", SOURCE)
ROW_SUMS = Kernel("row_sums", SOURCE, threads=WARP, block=64)
REVERSED = Kernel("reversed", SOURCE, threads=BLOCK, block=32, variants=((),), shared_bytes=4096)
