// A file per type, so that the instances of upstream's tiled product are compiled in parallel.
#include "ggml-cuda/mmq.cuh"

DECL_MMQ_CASE(GGML_TYPE_BOF4_S);
