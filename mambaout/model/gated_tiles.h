// gated_block.h for each tile, with vectors of V.
#define T 4
#include "vectors.h"
#include "gated_block.h"
#undef T
#define T 7
#include "vectors.h"
#include "gated_block.h"
#undef T
#define T 8
#include "vectors.h"
#include "gated_block.h"
#undef T
