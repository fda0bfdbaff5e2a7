/* SPDX-License-Identifier: MIT */
/* The one-register interface (V13). */
#ifndef KC_ONEREG_H
#define KC_ONEREG_H

#include <stddef.h>
#include <stdint.h>

#include "errors.h"

struct kc_vcpu;

#define KC_ONE_REG_MAX 256

/* The size in bytes that the id says, 1 to 256; 0 if it says none that is known. */
size_t kc_one_reg_size(uint64_t id);
int kc_one_reg_get(struct kc_vcpu *vcpu, uint64_t id, void *value, struct kc_error *err);
int kc_one_reg_set(struct kc_vcpu *vcpu, uint64_t id, const void *value, struct kc_error *err);
/* The ids that there are, freed by the caller. */
uint64_t *kc_one_reg_list(struct kc_vcpu *vcpu, size_t *count, struct kc_error *err);
/* As V13 prints it; at least KC_ONE_REG_TEXT bytes. */
#define KC_ONE_REG_TEXT (KC_ONE_REG_MAX * 6 + 8)
void kc_one_reg_format(uint64_t id, const void *value, char *text, size_t size);

#endif
