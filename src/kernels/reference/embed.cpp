// embed: rows of a table.
#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void embed(const Context& context, const EmbedArgs& args) {
  for_each(context, args.count, 64, [&](int64_t i) {
    for (int64_t c = 0; c < args.cols; ++c)
      args.out[i * args.cols + c] = args.scale * load(args.table, args.dtype, args.ids[i] * args.cols + c);
  });
}

}  // namespace nibble::kernels::reference
