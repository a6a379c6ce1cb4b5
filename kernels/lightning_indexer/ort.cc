#include "csrc/ort/custom_op.h"
namespace dsf::ort_door {
void register_lightning_indexer(OpList&) {}
}  // namespace dsf::ort_door
