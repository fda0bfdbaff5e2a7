// SPDX-License-Identifier: MIT
#include "fields.h"

#include <string.h>

size_t kc_field_get(const struct kc_field *field, const void *data, size_t split, uint8_t *bytes)
{
	const uint8_t *from = data;

	if (field->kind == KC_FIELD_SPLIT && !split)
		return 0;
	memcpy(bytes, from + field->offset, field->size);
	if (field->kind != KC_FIELD_SPLIT)
		return field->size;
	memcpy(bytes + field->size, from + split + field->high, field->size);
	return 2 * (size_t)field->size;
}

size_t kc_field_put(const struct kc_field *field, void *data, size_t split, const uint8_t *bytes)
{
	uint8_t *to = data;

	if (field->kind == KC_FIELD_SPLIT && !split)
		return 0;
	memcpy(to + field->offset, bytes, field->size);
	if (field->kind != KC_FIELD_SPLIT)
		return field->size;
	memcpy(to + split + field->high, bytes + field->size, field->size);
	return 2 * (size_t)field->size;
}

void kc_field_format(const uint8_t *bytes, size_t size, char *text)
{
	if (size == 1 && bytes[0] < 10) {
		sprintf(text, "%u", bytes[0]);
		return;
	}
	text += sprintf(text, "0x");
	while (size--)
		text += sprintf(text, "%02x", bytes[size]);
}

/* "name=value"; its length, 0 if the processor does not have the field. */
static int format_cell(const struct kc_field *field, const void *data, size_t split, char *text,
		       size_t size)
{
	uint8_t bytes[KC_FIELD_BYTES];
	char value[KC_FIELD_TEXT];
	size_t length = kc_field_get(field, data, split, bytes);

	if (!length)
		return 0;
	kc_field_format(bytes, length, value);
	return snprintf(text, size, "%s=%s", field->name, value);
}

void kc_fields_print_line(FILE *out, const struct kc_field *fields, const void *data, size_t split)
{
	char text[KC_FIELD_TEXT + 64];
	const char *gap = "";

	for (const struct kc_field *f = fields; f->kind != KC_FIELD_END; f++) {
		if (f->kind == KC_FIELD_STRUCT) {
			fprintf(out, "%s%s=(", gap, f->name);
			kc_fields_print_line(out, f->fields, (const uint8_t *)data + f->offset, 0);
			fputc(')', out);
		} else if (format_cell(f, data, split, text, sizeof(text))) {
			fprintf(out, "%s%s", gap, text);
		} else {
			continue;
		}
		gap = " ";
	}
}

/* Fields of one kind and size that follow each other stand in columns; where they end. */
static const struct kc_field *run_end(const struct kc_field *first)
{
	const struct kc_field *f = first;

	while (f->kind == first->kind && f->size == first->size)
		f++;
	return f;
}

static void print_run(FILE *out, const struct kc_field *first, const struct kc_field *end,
		      const void *data, size_t split, const char *indent)
{
	char text[KC_FIELD_TEXT + 64];
	int width = 0, room = 100 - (int)strlen(indent), column = 0, columns, length;

	for (const struct kc_field *f = first; f < end; f++) {
		length = format_cell(f, data, split, text, sizeof(text));
		width = length > width ? length : width;
	}
	if (!width)
		return;
	columns = (room + 2) / (width + 2);
	columns = columns > 4 && first->size > 1 ? 4 : columns;
	for (const struct kc_field *f = first; f < end; f++) {
		if (!format_cell(f, data, split, text, sizeof(text)))
			continue;
		fputs(column ? "  " : indent, out);
		if (++column >= columns || f + 1 == end) {
			fprintf(out, "%s\n", text);
			column = 0;
		} else {
			fprintf(out, "%-*s", width, text);
		}
	}
}

void kc_fields_print(FILE *out, const struct kc_field *fields, const void *data, size_t split,
		     const char *indent)
{
	int width = 0;

	for (const struct kc_field *f = fields; f->kind != KC_FIELD_END; f++)
		if (f->kind == KC_FIELD_STRUCT && (int)strlen(f->name) > width)
			width = (int)strlen(f->name);
	for (const struct kc_field *f = fields, *end; f->kind != KC_FIELD_END; f = end) {
		end = f->kind == KC_FIELD_STRUCT ? f + 1 : run_end(f);
		if (f->kind != KC_FIELD_STRUCT) {
			print_run(out, f, end, data, split, indent);
			continue;
		}
		fprintf(out, "%s%-*s ", indent, width, f->name);
		kc_fields_print_line(out, f->fields, (const uint8_t *)data + f->offset, 0);
		fputc('\n', out);
	}
}
