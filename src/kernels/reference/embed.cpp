// embed and scatter_add_rows: rows of a table, read and added to.
#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void embed(const Context& context, const EmbedArgs& args) {
  for_each(context, args.count, 64, [&](int64_t i) {
    for (int64_t c = 0; c < args.cols; ++c) {
      const int64_t at = i * args.cols + c;
      const float value = args.scale * load(args.table, args.dtype, args.ids[i] * args.cols + c);
      store(args.out, args.out_dtype, at, args.accumulate ? load(args.out, args.out_dtype, at) + value : value);
    }
  });
}

void scatter_add_rows(const Context& context, const ScatterAddRowsArgs& args) {
  for_each(context, args.count, 64, [&](int64_t i) {
    for (int64_t c = 0; c < args.cols; ++c)
      args.out[args.rows[i] * args.cols + c] += args.weights[i] * args.x[i * args.cols + c];
  });
}

}  // namespace nibble::kernels::reference
