#include "ggml-cuda/mmq.cuh"

DECL_MMQ_CASE(GGML_TYPE_BOF4_S);
