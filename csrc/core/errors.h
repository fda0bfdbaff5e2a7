/* SPDX-License-Identifier: MIT */
/* Errors as values: a call that fails returns -1 (or NULL) and fills the caller's struct kc_error. */
#ifndef KC_ERRORS_H
#define KC_ERRORS_H

#include <stdbool.h>
#include <stdint.h>

enum kc_error_kind {
	KC_OK,
	KC_ERR_OS, /* a system call or ioctl failed: .os_errno */
	KC_ERR_NOT_FOUND, /* opening the device: there is none */
	KC_ERR_PERMISSION, /* opening the device: not for this user */
	KC_ERR_NOT_KVM, /* opening the device: it is something else */
	KC_ERR_VERSION, /* opening the device: another API version */
	KC_ERR_UNSUPPORTED, /* the kernel lacks an interface */
	KC_ERR_VALUE, /* a bad argument */
	KC_ERR_MEMORY, /* out of memory */
	KC_ERR_BUSY, /* another thread runs the vCPU */
	KC_ERR_NOT_STARTED, /* the vCPU was not started */
	KC_ERR_CLOSED, /* the object was closed */
	KC_ERR_FORKED, /* this is a child of the process that made it */
	KC_ERR_STATE, /* the wrong state for the call */
	KC_ERR_UNMAPPED, /* no guest memory: .address */
	KC_ERR_GUEST, /* an exit that the run cannot go on from: the vCPU's exit tells */
	KC_ERR_UNASSIGNED, /* nobody at an address: .access */
	KC_ERR_CALLBACK, /* a callback failed and keeps its own account of it */
};

struct kc_error {
	enum kc_error_kind kind;
	int os_errno;
	uint64_t address;
	struct {
		uint64_t pc;
		uint32_t size;
		bool is_write, is_io;
	} access;
	char message[512];
};

/* All return -1, so that a caller can say "return kc_fail(...)". */
int kc_fail(struct kc_error *err, enum kc_error_kind kind, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* From errno; the message is "WHAT: strerror (hint)". */
int kc_fail_os(struct kc_error *err, const char *what);

#endif
