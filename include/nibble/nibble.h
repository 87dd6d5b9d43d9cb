// Everything nibble offers, in one include.
#pragma once

#include "nibble/adapter.h"
#include "nibble/checkpoint.h"
#include "nibble/generate.h"
#include "nibble/model.h"
#include "nibble/optim.h"
#include "nibble/plan.h"
#include "nibble/quantize.h"
#include "nibble/seq2seq.h"
#include "nibble/system.h"
#include "nibble/tokenizer.h"
#include "nibble/train.h"
#include "nibble/types.h"
