# SPDX-License-Identifier: MIT
"""Text-mode VGA: a screen of 80 x 25 characters in the guest's memory at 0xB8000.

The memory is the board's, or given to it: writing to it costs the guest no exit. Here are the
registers (IBM PS/2 Hardware Interface Technical Reference, Video Subsystem), of which the screen's
start and the cursor count for what is shown. There is no BIOS for it.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmcpu._kvm import UnmappedError
from kvmcpu.devices.base import Device, DeviceError, Ports, Register, State

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

MEMORY = 0xB8000
MEMORY_SIZE = 0x8000
COLUMNS, ROWS = 80, 25
_CURSOR_START, _CURSOR_END, _START_HIGH, _CURSOR_HIGH = 0x0A, 0x0B, 0x0C, 0x0E
_CURSOR_OFF = 0x20
_CELL = (8, 16)
# What the hardware shows for the codes below a space and for 0x7f.
_LOW = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
_CP437 = _LOW + bytes(range(32, 127)).decode("ascii") + "⌂" + bytes(range(128, 256)).decode("cp437")
_COLOURS = (
    "#000000", "#0000aa", "#00aa00", "#00aaaa", "#aa0000", "#aa00aa", "#aa5500", "#aaaaaa",
    "#555555", "#5555ff", "#55ff55", "#55ffff", "#ff5555", "#ff55ff", "#ffff55", "#ffffff",
)  # fmt: skip
# Mode 3's timing registers, for drivers that read them back.
_CRTC = bytes.fromhex("5f 4f 50 82 55 81 bf 1f 00 4f 0d 0e 00 00 00 00 9c 8e 8f 28 1f 96 b9 a3 ff")


def _indexed(where: Ports, offset: int, kept: str, index: str, size: int) -> Register:
    """A data register: what the index register names, of a bank of ``size`` bytes."""
    register = Register(where, offset)

    @register.read
    def read(device: VgaText) -> int:
        at = int(getattr(device, index))
        return int(getattr(device, kept)[at]) if at < size else 0

    @register.write
    def write(device: VgaText, value: int) -> None:
        at = int(getattr(device, index))
        if at < size:
            getattr(device, kept)[at] = value

    return register


@dataclass(eq=False, kw_only=True)
class VgaText(Device):
    """A colour VGA in mode 3; its ports are 0x3C0 to 0x3CF and 0x3D4 to 0x3DA."""

    video = Ports(0x3C0, 16)
    crtc_ports = Ports(0x3D4, 7)

    attribute_bank = State(lambda: bytearray((*range(6), 0x14, 7, *range(0x38, 0x40), 0x0C, 0,
                                              0x0F, 8, 0)))  # fmt: skip
    sequencer_bank = State(lambda: bytearray((3, 0, 3, 0, 2)))
    graphics_bank = State(lambda: bytearray((0, 0, 0, 0, 0, 0x10, 0x0E, 0, 0xFF)))
    crtc_bank = State(lambda: bytearray(_CRTC))
    palette = State(lambda: bytearray(3 * 256))
    attribute_data = State(bool)  # the flip-flop: the next write is data
    palette_at = State(int)  # byte of the palette that is next
    retrace = State(int)
    attribute = State(int)  # the register that attribute data go to

    attribute_index = Register(video, 0)
    attribute_value = Register(video, 1, access="r")
    misc = Register(video, 2, access="w")
    sequencer_index = Register(video, 4, mask=7)
    sequencer = _indexed(video, 5, "sequencer_bank", "sequencer_index", 5)
    palette_mask = Register(video, 6, reset=0xFF)
    palette_read = Register(video, 7)
    palette_write = Register(video, 8)
    palette_data = Register(video, 9)
    misc_read = Register(video, 12, access="r", reset=0x67)
    graphics_index = Register(video, 14, mask=15)
    graphics = _indexed(video, 15, "graphics_bank", "graphics_index", 9)
    crtc_index = Register(crtc_ports, 0, mask=0x1F)
    crtc = _indexed(crtc_ports, 1, "crtc_bank", "crtc_index", len(_CRTC))
    input_status = Register(crtc_ports, 6, access="r", fields={"DISPLAY": 0, "RETRACE": 3})

    def connect(self) -> None:
        vm = self.board.vm
        try:
            vm.read(MEMORY, MEMORY_SIZE)
        except UnmappedError:
            try:
                vm.add_memory(MEMORY, MEMORY_SIZE)
            except ValueError as error:
                raise DeviceError(f"there is no room for the screen's memory: {error}") from error

    @attribute_index.write
    def write_attribute(self, value: int) -> None:
        if self.attribute_data:
            if self.attribute < len(self.attribute_bank):
                self.attribute_bank[self.attribute] = value
            self.attribute_index = self.attribute
        self.attribute = self.attribute_index & 0x1F
        self.attribute_data = not self.attribute_data

    @attribute_value.read
    def read_attribute(self) -> int:
        at = self.attribute_index & 0x1F
        return self.attribute_bank[at] if at < len(self.attribute_bank) else 0

    @misc.write
    def write_misc(self, value: int) -> None:
        self.misc_read = value

    @input_status.read
    def read_input_status(self) -> int:
        # Drivers wait for both levels of both bits.
        self.attribute_data = False
        self.retrace = (self.retrace + 1) % 4
        return (0, 1, 9, 1)[self.retrace]

    @palette_read.write
    def start_reading(self, value: int) -> None:
        self.palette_at = 3 * value

    @palette_write.write
    def start_writing(self, value: int) -> None:
        self.palette_at = 3 * value

    @palette_data.read
    def read_palette(self) -> int:
        value = self.palette[self.palette_at]
        self.palette_at = (self.palette_at + 1) % len(self.palette)
        return value

    @palette_data.write
    def write_palette(self, value: int) -> None:
        self.palette[self.palette_at] = value & 0x3F
        self.palette_at = (self.palette_at + 1) % len(self.palette)

    # ---- what is shown ----

    def _word(self, at: int) -> int:
        return self.crtc_bank[at] << 8 | self.crtc_bank[at + 1]

    def _cells(self) -> bytes:
        """The characters and attributes that are shown, two bytes each."""
        memory = self.board.vm.read(MEMORY, MEMORY_SIZE)
        first = 2 * self._word(_START_HIGH) % MEMORY_SIZE
        return (memory[first:] + memory[:first])[: 2 * COLUMNS * ROWS]

    def screen(self) -> list[str]:
        """The rows of the screen, 80 characters each (code page 437)."""
        characters = "".join(_CP437[code] for code in self._cells()[::2])
        return [characters[i : i + COLUMNS] for i in range(0, len(characters), COLUMNS)]

    @property
    def text(self) -> str:
        """The screen as text, without what is empty at the end of rows and of the screen."""
        return "\n".join(row.rstrip() for row in self.screen()).rstrip("\n")

    def attributes(self) -> list[bytes]:
        """The attributes of each row: foreground in bits 0-3, background in 4-6, blinking in 7."""
        cells = self._cells()[1::2]
        return [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]

    @property
    def cursor(self) -> tuple[int, int] | None:
        """Row and column of the cursor; None if it is off or elsewhere."""
        at = self._word(_CURSOR_HIGH) - self._word(_START_HIGH)
        if self.crtc_bank[_CURSOR_START] & _CURSOR_OFF or not 0 <= at < COLUMNS * ROWS:
            return None
        return divmod(at, COLUMNS)

    def image(self) -> Image:
        """The screen as a Pillow image of 640 x 400. ImportError says what to install."""
        try:
            from PIL import Image, ImageDraw, ImageFont
        except ImportError as error:
            raise ImportError(
                f"pictures need Pillow: pip install kvmcpu[screen] ({error})"
            ) from error
        width, height = _CELL
        picture = Image.new("RGB", (width * COLUMNS, height * ROWS))
        draw = ImageDraw.Draw(picture)
        font = ImageFont.load_default(size=13)
        for row, (line, colours) in enumerate(zip(self.screen(), self.attributes(), strict=True)):
            for column, (character, attribute) in enumerate(zip(line, colours, strict=True)):
                box = (column * width, row * height)
                end = (box[0] + width - 1, box[1] + height - 1)
                draw.rectangle((box, end), fill=_COLOURS[attribute >> 4 & 7])
                colour = _COLOURS[attribute & 15]
                if not _draw_shape(draw, box, character, colour):
                    middle = (box[0] + width // 2, box[1] + height - 4)
                    draw.text(middle, character, colour, font, anchor="ms")
        if self.cursor is not None:
            row, column = self.cursor
            first = self.crtc_bank[_CURSOR_START] & 15
            last = min(self.crtc_bank[_CURSOR_END] & 15, height - 1)
            if first <= last:
                x, y = column * width, row * height
                colour = _COLOURS[self.attributes()[row][column] & 15]
                draw.rectangle((x, y + first, x + width - 1, y + last), fill=colour)
        return picture

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the picture, in the format that the file's name says."""
        self.image().save(path)

    def _repr_png_(self) -> bytes:
        """For notebooks."""
        file = io.BytesIO()
        self.image().save(file, "PNG")
        return file.getvalue()


def _draw_shape(draw: ImageDraw, box: tuple[int, int], character: str, colour: str) -> bool:
    """Box-drawing characters and blocks, which fonts draw with gaps. False: it is another one."""
    import unicodedata

    (x, y), (width, height) = box, _CELL
    right, bottom, x_middle, y_middle = x + width - 1, y + height - 1, x + 3, y + 7
    blocks = {
        "█": (x, y, right, bottom),
        "▄": (x, y + 8, right, bottom),
        "▀": (x, y, right, y + 7),
        "▌": (x, y, x + 3, bottom),
        "▐": (x + 4, y, right, bottom),
        "■": (x + 1, y + 5, right - 1, y + 11),
    }
    if character in blocks:
        draw.rectangle(blocks[character], fill=colour)
        return True
    if character in "░▒▓":
        step = {"░": 4, "▒": 2, "▓": 4}[character]
        inverse = character == "▓"
        draw.point(
            [
                (x + i, y + j)
                for j in range(height)
                for i in range(width)
                if ((i + 2 * (j % 2)) % step == 0) != inverse
            ],
            fill=colour,
        )
        return True
    name = unicodedata.name(character, "")
    if not name.startswith("BOX DRAWINGS"):
        return False
    words = name.split()
    sides = set(words)
    double = "DOUBLE" in sides
    for offset in (-1, 1) if double else (0,):
        if sides & {"HORIZONTAL", "LEFT", "RIGHT"}:
            start = x if sides & {"HORIZONTAL", "LEFT"} else x_middle
            end = right if sides & {"HORIZONTAL", "RIGHT"} else x_middle
            draw.line((start, y_middle + offset, end, y_middle + offset), fill=colour)
        if sides & {"VERTICAL", "UP", "DOWN"}:
            start = y if sides & {"VERTICAL", "UP"} else y_middle
            end = bottom if sides & {"VERTICAL", "DOWN"} else y_middle
            draw.line((x_middle + offset, start, x_middle + offset, end), fill=colour)
    return True
