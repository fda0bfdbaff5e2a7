/* SPDX-License-Identifier: MIT */
/* The arguments of VM.create_vcpu(). */
#ifndef PC_VCPU_NEW_H
#define PC_VCPU_NEW_H

#include "module.h"

struct pc_vcpu_options {
	int id; /* -1: the next free one */
	int start;
	struct kc_vcpu_config config; /* points into the arguments */
	struct kc_cpuid_entry *cpuid; /* the user's table, to be freed; NULL: none */
	size_t cpuid_count;
};

/* 0, or -1 with an exception; options->cpuid is then the caller's to free all the same. */
int pc_vcpu_options_parse(struct pc_state *state, struct pc_vcpu_options *options, PyObject *args,
			  PyObject *kwargs);

#endif
