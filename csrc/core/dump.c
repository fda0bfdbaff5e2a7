// SPDX-License-Identifier: MIT
#include "dump.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/arch.h"
#include "cleanup.h"
#include "compat.h"
#include "onereg.h"
#include "vcpu.h"
#include "vm.h"

static bool has_register_file(unsigned int file)
{
	for (unsigned int i = 0; i < kc_arch_register_file_count; i++)
		if (kc_arch_register_files[i].file == file)
			return true;
	return false;
}

/* What a file without named fields holds: a number, or the words that are not zero. */
static void print_raw(FILE *out, const struct kc_file *file, const void *data, size_t size)
{
	uint32_t word;
	unsigned int column = 0;

	if (size <= 8) {
		uint64_t number = 0;

		memcpy(&number, data, size);
		fprintf(out, "%s=%" PRIu64 "\n", file->name, number);
		return;
	}
	fprintf(out, "%s:\n", file->name);
	for (size_t at = 0; at + sizeof(word) <= size; at += sizeof(word)) {
		memcpy(&word, (const uint8_t *)data + at, sizeof(word));
		if (word)
			fprintf(out, "%s+0x%03zx=0x%08" PRIx32,
				column++ % 4 ? "  "
				: column > 1 ? "\n  "
					     : "  ",
				at, word);
	}
	fputs(column ? "\n" : "  all zero\n", out);
}

static int print_files(FILE *out, struct kc_vcpu *vcpu, struct kc_error *err)
{
	for (unsigned int i = 0; i < kc_arch_register_file_count; i++) {
		const struct kc_register_file *file = &kc_arch_register_files[i];
		const void *data;

		if (!(vcpu->context.present & 1u << file->file))
			continue;
		data = kc_context_read(vcpu, file->file, err);
		if (!data)
			return -1;
		fprintf(out, "%s (%s):\n", file->doc, file->attribute);
		kc_fields_print(out, file->fields, data, kc_arch_split_offset(vcpu), "  ");
	}
	for (unsigned int i = 0; i < kc_arch_file_count; i++) {
		const void *data;

		if (has_register_file(i) || !(vcpu->context.present & 1u << i))
			continue;
		data = kc_context_read(vcpu, i, err);
		if (!data)
			return -1;
		print_raw(out, &kc_arch_files[i], data, vcpu->context.size[i]);
	}
	return 0;
}

const char *kc_msr_name(uint32_t index)
{
	unsigned int low = 0, high = kc_arch_msr_name_count;

	while (low < high) {
		unsigned int middle = low + (high - low) / 2;

		if (kc_arch_msr_names[middle].index == index)
			return kc_arch_msr_names[middle].name;
		if (kc_arch_msr_names[middle].index < index)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

int kc_dump_msrs(FILE *out, struct kc_vcpu *vcpu, const char *title, struct kc_error *err)
{
	size_t count, column = 0;
	kc_auto_free uint32_t *list = kc_arch_msr_list(vcpu->vm, &count, err);

	if (!list)
		return -1;
	for (size_t i = 0; i < count; i++) {
		const char *name = kc_msr_name(list[i]);
		char number[16], text[64];
		struct kc_error unreadable;
		uint64_t value;

		/* Some are listed for processors or guests that have them, and this one has not. */
		if (kc_arch_get_msr(vcpu, list[i], &value, &unreadable))
			continue;
		snprintf(number, sizeof(number), "0x%" PRIx32, list[i]);
		snprintf(text, sizeof(text), "%s=0x%016" PRIx64, name ? name : number, value);
		if (!column)
			fputs(title, out);
		fprintf(out, column % 2 ? "  %s\n" : "  %-46s", text);
		column++;
	}
	fputs(column % 2 ? "\n" : "", out);
	return 0;
}

/* The one-register interface's own: those that nothing above has shown. */
static void print_one_regs(FILE *out, struct kc_vcpu *vcpu)
{
	char text[KC_ONE_REG_TEXT];
	uint8_t value[KC_ONE_REG_MAX];
	struct kc_error unreadable;
	bool first = true;
	size_t count;
	kc_auto_free uint64_t *ids = kc_one_reg_list(vcpu, &count, &unreadable);

	for (size_t i = 0; ids && i < count; i++) {
#if defined(__x86_64__)
		if (ids[i] == KC_X86_REG_MSR((uint32_t)ids[i]))
			continue;
#endif
		if (kc_one_reg_size(ids[i]) && kc_one_reg_get(vcpu, ids[i], value, &unreadable))
			continue;
		kc_one_reg_format(ids[i], value, text, sizeof(text));
		fprintf(out, "%s  0x%016" PRIx64 "=%s\n",
			first ? "Other registers (one_reg):\n" : "", ids[i], text);
		first = false;
	}
}

/* Registers of one width in the classic rows of four. */
static void print_rows(FILE *out, const struct kc_field *fields, const void *data)
{
	unsigned int column = 0;

	for (const struct kc_field *f = fields; f->kind != KC_FIELD_END; f++) {
		uint64_t value = 0;

		if (f->kind != KC_FIELD_UINT)
			continue;
		memcpy(&value, (const uint8_t *)data + f->offset, f->size);
		fprintf(out, "%s%s=%0*" PRIx64,
			!column	     ? ""
			: column % 4 ? " "
				     : "\n",
			f->name, 2 * (int)f->size, value);
		column++;
	}
	fputc('\n', out);
}

/* What says where the guest is and in which mode: the general registers, and what the next file has. */
static int print_brief(FILE *out, struct kc_vcpu *vcpu, struct kc_error *err)
{
	for (unsigned int i = 0; i < kc_arch_register_file_count && i < 2; i++) {
		const struct kc_register_file *file = &kc_arch_register_files[i];
		const void *data = kc_context_read(vcpu, file->file, err);

		if (!data)
			return -1;
		if (i)
			kc_fields_print(out, file->fields, data, 0, "");
		else
			print_rows(out, file->fields, data);
	}
	return 0;
}

char *kc_dump(struct kc_vcpu *vcpu, bool brief, struct kc_error *err)
{
	kc_auto_free char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);
	int result;

	if (!out) {
		kc_fail_os(err, "open_memstream");
		return NULL;
	}
	if (brief) {
		result = print_brief(out, vcpu, err);
	} else {
		fprintf(out, "%s (vCPU %u), %s, %s\n", vcpu->name, vcpu->id,
			kc_status_name(vcpu->status), vcpu->active ? "active" : "inactive");
		result = print_files(out, vcpu, err);
		if (!result)
			result = kc_dump_msrs(out, vcpu, "Model-specific registers (msrs):\n", err);
		if (!result)
			print_one_regs(out, vcpu);
	}
	/* The text is allocated only now; a full memory shows here, not before. */
	if (fclose(out) && !result)
		result = kc_fail(err, KC_ERR_MEMORY, "out of memory");
	return result ? NULL : kc_move(text);
}
