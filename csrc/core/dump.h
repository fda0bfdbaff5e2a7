/* SPDX-License-Identifier: MIT */
/* Every register the vCPU has, for a person (V22). */
#ifndef KC_DUMP_H
#define KC_DUMP_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "errors.h"

struct kc_vcpu;

/* Text to be freed by the caller. brief: only what fits an error report. */
char *kc_dump(struct kc_vcpu *vcpu, bool brief, struct kc_error *err);
/* The title, if there are any, and the readable MSRs in two columns. */
int kc_dump_msrs(FILE *out, struct kc_vcpu *vcpu, const char *title, struct kc_error *err);
/* As the manuals have it; NULL: it has no name here. */
const char *kc_msr_name(uint32_t index);

#endif
