// SPDX-License-Identifier: MIT
#include "module.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "dump.h"
#include "exits.h"

/* How many of the last exits a report ends with: what led there, not all that is known. */
#define REPORTED_EXITS 8

/* A base that is one of ours has a lower number: they are made in this order. */
static const struct {
	const char *name, *doc;
	enum pc_error base; /* PC_ERROR_COUNT: .builtin */
	PyObject **builtin;
} specs[PC_ERROR_COUNT] = {
#define OURS(name, base) [PC_##name] = { "kvmcpu._kvm." #name, DOC_##name, PC_##base, NULL }
#define OF(name, base)                                                                             \
	[PC_##name] = { "kvmcpu._kvm." #name, DOC_##name, PC_ERROR_COUNT, &PyExc_##base }
	OF(KvmError, OSError),
	OURS(KvmNotFoundError, KvmError),
	OURS(KvmPermissionError, KvmError),
	OURS(NotKvmError, KvmError),
	OURS(KvmVersionError, KvmError),
	OURS(UnsupportedError, KvmError),
	OF(VcpuBusy, RuntimeError),
	OF(NotStartedError, RuntimeError),
	OF(ClosedError, ValueError),
	OF(ForkError, RuntimeError),
	OF(StateError, RuntimeError),
	OF(UnmappedError, LookupError),
	OF(GuestError, Exception),
	OURS(UnknownExitError, GuestError),
	OURS(ExceptionExitError, GuestError),
	OURS(FailEntryError, GuestError),
	OURS(InternalError, GuestError),
	OURS(ShutdownError, GuestError),
	OURS(UnhandledExitError, GuestError),
	OURS(UnassignedAccessError, GuestError),
#undef OURS
#undef OF
};

int pc_errors_init(PyObject *module, struct pc_state *state)
{
	for (int i = 0; i < PC_ERROR_COUNT; i++) {
		PyObject *base = specs[i].base == PC_ERROR_COUNT ? *specs[i].builtin
								 : state->errors[specs[i].base];

		state->errors[i] =
			PyErr_NewExceptionWithDoc(specs[i].name, specs[i].doc, base, NULL);
		if (!state->errors[i])
			return -1;
		if (PyModule_AddObjectRef(module, strrchr(specs[i].name, '.') + 1,
					  state->errors[i]))
			return -1;
	}
	return 0;
}

/* ---- errors of calls ---- */

static PyObject *raise_text(PyObject *type, const struct kc_error *err)
{
	PyErr_SetString(type, err->message);
	return NULL;
}

/* An OSError: errno and text where there is a number, otherwise the text alone. */
static PyObject *raise_os(PyObject *type, const struct kc_error *err)
{
	PyObject *args;

	if (!err->os_errno)
		return raise_text(type, err);
	args = Py_BuildValue("(is)", err->os_errno, err->message);
	if (args) {
		PyErr_SetObject(type, args);
		Py_DECREF(args);
	}
	return NULL;
}

static int set_attribute(PyObject *exception, const char *name, PyObject *value)
{
	int failed = value ? PyObject_SetAttrString(exception, name, value) : -1;

	Py_XDECREF(value);
	return failed;
}

static PyObject *raise_unmapped(PyObject *type, const struct kc_error *err)
{
	PyObject *exception = PyObject_CallFunction(type, "s", err->message);

	if (exception &&
	    !set_attribute(exception, "address", PyLong_FromUnsignedLongLong(err->address)))
		PyErr_SetObject(type, exception);
	Py_XDECREF(exception);
	return NULL;
}

/* ---- errors of guests ---- */

static enum pc_error guest_error(const struct kc_vcpu *vcpu)
{
	switch (vcpu->record ? vcpu->record->reason : UINT32_MAX) {
	case KVM_EXIT_UNKNOWN:
		return PC_UnknownExitError;
	case KVM_EXIT_EXCEPTION:
		return PC_ExceptionExitError;
	case KVM_EXIT_FAIL_ENTRY:
		return PC_FailEntryError;
	case KVM_EXIT_INTERNAL_ERROR:
		return PC_InternalError;
	case KVM_EXIT_SHUTDOWN:
		return PC_ShutdownError;
	default:
		return PC_UnhandledExitError;
	}
}

struct text {
	char *data;
	size_t size;
};

static void print_exit(FILE *file, const struct kc_exit_record *record)
{
	fprintf(file, "\n  tick %llu  %s", (unsigned long long)record->tick,
		kc_exit_name(record->reason));
	if (record->size)
		fprintf(file, "  %s %#llx  %d %s  data %#llx", record->size < 0 ? "read" : "write",
			(unsigned long long)record->address, abs(record->size),
			abs(record->size) == 1 ? "byte" : "bytes",
			(unsigned long long)record->data);
	else if (record->data)
		fprintf(file, "  %#llx", (unsigned long long)record->data);
}

/* The message: what happened, the registers, and the exits that led there. */
static int report(struct text *text, const struct kc_error *err, const struct kc_vcpu *vcpu,
		  const char *registers)
{
	uint64_t total = vcpu->exits.total,
		 first = total > REPORTED_EXITS ? total - REPORTED_EXITS : 0;
	FILE *file = open_memstream(&text->data, &text->size);

	if (!file)
		return -1;
	fputs(err->message, file);
	if (*registers)
		fprintf(file, "\n%s", registers);
	if (first < total)
		fputs("\nlast exits, the oldest first:", file);
	for (uint64_t i = first; i < total; i++)
		print_exit(file, &vcpu->exits.records[i % KC_LAST_EXITS]);
	return fclose(file) ? -1 : 0;
}

/* A vCPU whose VM was closed meanwhile, say, has none: then that stands there. */
static char *brief_registers(struct kc_vcpu *vcpu)
{
	struct kc_error err;
	char *registers = NULL;
	size_t length;

	if (!kc_vcpu_claim(vcpu, &err)) {
		if (!kc_vcpu_check(vcpu, &err))
			registers = kc_dump(vcpu, true, &err);
		kc_vcpu_release(vcpu);
	}
	if (!registers && asprintf(&registers, "no registers: %s", err.message) < 0)
		return NULL;
	length = strlen(registers);
	while (length && registers[length - 1] == '\n')
		registers[--length] = '\0';
	return registers;
}

static int set_access(PyObject *exception, const struct kc_error *err)
{
	return set_attribute(exception, "address", PyLong_FromUnsignedLongLong(err->address)) ||
	       set_attribute(exception, "size", PyLong_FromUnsignedLong(err->access.size)) ||
	       set_attribute(exception, "direction",
			     PyUnicode_FromString(err->access.is_write ? "write" : "read")) ||
	       set_attribute(exception, "space",
			     PyUnicode_FromString(err->access.is_io ? "io" : "mmio")) ||
	       set_attribute(exception, "pc", PyLong_FromUnsignedLongLong(err->access.pc));
}

static PyObject *raise_guest(struct pc_state *state, const struct kc_error *err,
			     struct pc_vcpu *vcpu)
{
	bool unassigned = err->kind == KC_ERR_UNASSIGNED;
	PyObject *type =
		state->errors[unassigned ? PC_UnassignedAccessError : guest_error(vcpu->vcpu)];
	kc_auto_free char *registers = brief_registers(vcpu->vcpu);
	struct text text = { NULL, 0 };
	PyObject *message, *exception;

	if (!registers || report(&text, err, vcpu->vcpu, registers)) {
		free(text.data);
		return PyErr_NoMemory();
	}
	message = PyUnicode_DecodeUTF8(text.data, (Py_ssize_t)text.size, "replace");
	free(text.data);
	exception = message ? PyObject_CallOneArg(type, message) : NULL;
	Py_XDECREF(message);
	if (exception && !set_attribute(exception, "exit", pc_exit_new(state, vcpu)) &&
	    !set_attribute(exception, "registers", PyUnicode_FromString(registers)) &&
	    !(unassigned && set_access(exception, err)))
		PyErr_SetObject(type, exception);
	Py_XDECREF(exception);
	return NULL;
}

PyObject *pc_raise(struct pc_state *state, const struct kc_error *err, PyObject *vcpu)
{
	switch (err->kind) {
	case KC_ERR_OS:
		return raise_os(state->errors[PC_KvmError], err);
	case KC_ERR_NOT_FOUND:
		return raise_os(state->errors[PC_KvmNotFoundError], err);
	case KC_ERR_PERMISSION:
		return raise_os(state->errors[PC_KvmPermissionError], err);
	case KC_ERR_NOT_KVM:
		return raise_os(state->errors[PC_NotKvmError], err);
	case KC_ERR_VERSION:
		return raise_os(state->errors[PC_KvmVersionError], err);
	case KC_ERR_UNSUPPORTED:
		return raise_os(state->errors[PC_UnsupportedError], err);
	case KC_ERR_VALUE:
		return raise_text(PyExc_ValueError, err);
	case KC_ERR_MEMORY:
		return raise_text(PyExc_MemoryError, err);
	case KC_ERR_BUSY:
		return raise_text(state->errors[PC_VcpuBusy], err);
	case KC_ERR_NOT_STARTED:
		return raise_text(state->errors[PC_NotStartedError], err);
	case KC_ERR_CLOSED:
		return raise_text(state->errors[PC_ClosedError], err);
	case KC_ERR_FORKED:
		return raise_text(state->errors[PC_ForkError], err);
	case KC_ERR_STATE:
		return raise_text(state->errors[PC_StateError], err);
	case KC_ERR_UNMAPPED:
		return raise_unmapped(state->errors[PC_UnmappedError], err);
	case KC_ERR_GUEST:
	case KC_ERR_UNASSIGNED:
		if (vcpu)
			return raise_guest(state, err, (struct pc_vcpu *)vcpu);
		return raise_text(state->errors[PC_GuestError], err);
	case KC_ERR_CALLBACK:
		/* Its exception is set already, and comes out as it is. */
		if (PyErr_Occurred())
			return NULL;
		break;
	case KC_OK:
		break;
	}
	PyErr_Format(PyExc_SystemError, "an error without an account of it: %s", err->message);
	return NULL;
}
