"""What the commands of the study measure where nothing else is asked for: formats, block sizes and pairs by name."""

LAWS = ("norm", "laplace", "t:5")
"""Of drawn weights."""

COUNT = 2**20
"""Weights to draw from a law: the standard error of a relative squared error is below 0.3 %."""

BLOCKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Of the paper's figure 2."""

CODEBOOK_FORMATS = (
    "NF4", "AF4", "BOF4:metric=mae", "BOF4", "BOF4-S:metric=mae", "BOF4-S", "BOF4-S:opq=0.95"
)  # fmt: skip
"""Of the paper's figure 2, measured with all of BLOCKS."""

OTHER_FORMATS = (
    "INT:I=64", "MXFP4", "NVFP4", "MX4", "MX4:m=3", "VSQ", "BFP:w=4", "BFP:w=5", "BFP", "LO-BCQ", "LO-BCQ:LA=128:Nc=16"
)  # fmt: skip
"""Whose errors are measured with their own blocks."""

QUALITY_FORMATS = (
    "NF4", "AF4", "BOF4:metric=mae", "BOF4", "BOF4-S:metric=mae", "BOF4-S:metric=mae:opq=0.95", "BOF4-S",
    "BOF4-S:opq=0.9", "BOF4-S:opq=0.95", "BOF4-S:opq=0.99", "BOF4:fixed=none", "BOF4:fixed=0", "BOF4:fixed=-1/1",
    "BOF4_S", "BOF4_S:opq=0.95", "BOF4_K", "BOF4_K:opq=0.95", "Q4_0", "Q4_K", "IQ4_NL", "INT:I=64", "MXFP4", "NVFP4",
    "VSQ", "MX4", "BFP:w=4", "BFP", "LO-BCQ", "LO-BCQ:LA=128:Nc=16", "LO-BCQ:books=model", "AAAC", "ANY4:I=64",
)  # fmt: skip

SWEPT_FORMATS = ("NF4", "AF4", "BOF4", "BOF4-S:metric=mae", "BOF4-S")
"""Of the paper's figure 3, perplexity against the block size."""

SWEPT_BLOCKS = (32, 64, 128, 256, 1024)

PAIRS = (
    "F32", "BFP:w=4", "BFP", "BFP:w=8", "BFP:w=4,BFP", "BM", "BL", "MINIFLOAT", "DMF", "FIXED", "MXFP4", "MXFP6",
    "MXFP8", "NVFP4", "MX4", "VSQ", "LO-BCQ", "LO-BCQ:LA=128:Nc=16", "LO-BCQ:books=model", "BOF4-S",
    "BOF4-S,INT:w=8:I=32", "BOF4_S,INT:w=8:I=32", "INT:I=64,INT:w=8:I=64", "INT:w=8:I=64",
)  # fmt: skip
"""Formats of weights and of activations; one alone is for both."""

VARIANCE_PAIRS = ("BFP:w=4", "BFP")
VARIANCE_BLOCKS = (8, 16, 32)
"""Block sizes to choose by variance: 16 on the average, which is the formats' own."""

TASK_PAIRS = ("F32", "NF4,F32", "BOF4-S,F32", "LO-BCQ", "MXFP4")
