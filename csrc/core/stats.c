// SPDX-License-Identifier: MIT
#include "stats.h"

const struct kc_stat_info kc_stat_info[KC_STAT_COUNT] = {
#define X(name, gem5, text) { #name, gem5, text },
	KC_STATS(X)
#undef X
};

void kc_stats_reset(struct kc_stats *stats)
{
	for (int i = 0; i < KC_STAT_COUNT; i++)
		atomic_store_explicit(&stats->base[i],
				      atomic_load_explicit(&stats->value[i], memory_order_relaxed),
				      memory_order_relaxed);
}
