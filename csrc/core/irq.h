/* SPDX-License-Identifier: MIT */
/* Interrupt controllers in the kernel, lines, messages, routes, and the two kinds of eventfd (V17). */
#ifndef KC_IRQ_H
#define KC_IRQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "compat.h"
#include "errors.h"

struct kc_vm;

int kc_irq_create_chip(struct kc_vm *vm, struct kc_error *err);
int kc_irq_create_pit(struct kc_vm *vm, bool speaker_dummy, struct kc_error *err);
int kc_irq_line(struct kc_vm *vm, uint32_t gsi, uint32_t level, struct kc_error *err);
/* How many vCPUs got it. */
int kc_irq_msi(struct kc_vm *vm, uint64_t address, uint32_t data, struct kc_error *err);
int kc_irq_set_routing(struct kc_vm *vm, const struct kvm_irq_routing_entry *entries, size_t count,
		       struct kc_error *err);
/* fd -1: a new eventfd is made. Returns the fd. resample_fd -1: none. */
int kc_irq_fd(struct kc_vm *vm, uint32_t gsi, int fd, int resample_fd, bool remove,
	      struct kc_error *err);
int kc_irq_ioeventfd(struct kc_vm *vm, uint64_t address, uint32_t size, int fd,
		     const uint64_t *value, bool io, bool remove, struct kc_error *err);

#endif
