# SPDX-License-Identifier: MIT
"""The PC's keyboard controller and its keyboard.

The controller is an 8042 as IBM's Personal System/2 Hardware Interface Technical Reference
describes it (Keyboard and Auxiliary Device Controller); there is no mouse at its second port. The
keyboard speaks scan code set 2, which the controller translates to set 1 when it is told to. What
the host types waits here until the guest takes it: nothing is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from kvmcpu.devices.base import Device, Ports, Register, State

_STATUS_FULL, _STATUS_SYSTEM, _STATUS_COMMAND = 0x01, 0x04, 0x08
_STATUS_UNLOCKED, _STATUS_AUX = 0x10, 0x20
_COMMAND_IRQ, _COMMAND_AUX_IRQ, _COMMAND_SYSTEM = 0x01, 0x02, 0x04
_COMMAND_DISABLED, _COMMAND_AUX_DISABLED, _COMMAND_TRANSLATE = 0x10, 0x20, 0x40
_OUTPUT_RESET, _OUTPUT_A20 = 0x01, 0x02
_ACK, _RESEND, _SELF_TEST_PASSED, _ECHO = 0xFA, 0xFE, 0xAA, 0xEE
_KEYBOARD, _CONTROLLER, _AUX = 0, 1, 2

# Keys by name: make codes of sets 1 and 2; those above 0xff have the prefix 0xe0.
_KEYS = {
    "esc": (0x01, 0x76), "1": (0x02, 0x16), "2": (0x03, 0x1E), "3": (0x04, 0x26),
    "4": (0x05, 0x25), "5": (0x06, 0x2E), "6": (0x07, 0x36), "7": (0x08, 0x3D),
    "8": (0x09, 0x3E), "9": (0x0A, 0x46), "0": (0x0B, 0x45), "-": (0x0C, 0x4E),
    "=": (0x0D, 0x55), "backspace": (0x0E, 0x66), "tab": (0x0F, 0x0D), "q": (0x10, 0x15),
    "w": (0x11, 0x1D), "e": (0x12, 0x24), "r": (0x13, 0x2D), "t": (0x14, 0x2C),
    "y": (0x15, 0x35), "u": (0x16, 0x3C), "i": (0x17, 0x43), "o": (0x18, 0x44),
    "p": (0x19, 0x4D), "[": (0x1A, 0x54), "]": (0x1B, 0x5B), "enter": (0x1C, 0x5A),
    "ctrl": (0x1D, 0x14), "a": (0x1E, 0x1C), "s": (0x1F, 0x1B), "d": (0x20, 0x23),
    "f": (0x21, 0x2B), "g": (0x22, 0x34), "h": (0x23, 0x33), "j": (0x24, 0x3B),
    "k": (0x25, 0x42), "l": (0x26, 0x4B), ";": (0x27, 0x4C), "'": (0x28, 0x52),
    "`": (0x29, 0x0E), "shift": (0x2A, 0x12), "\\": (0x2B, 0x5D), "z": (0x2C, 0x1A),
    "x": (0x2D, 0x22), "c": (0x2E, 0x21), "v": (0x2F, 0x2A), "b": (0x30, 0x32),
    "n": (0x31, 0x31), "m": (0x32, 0x3A), ",": (0x33, 0x41), ".": (0x34, 0x49),
    "/": (0x35, 0x4A), "right shift": (0x36, 0x59), "alt": (0x38, 0x11), "space": (0x39, 0x29),
    "caps lock": (0x3A, 0x58), "f1": (0x3B, 0x05), "f2": (0x3C, 0x06), "f3": (0x3D, 0x04),
    "f4": (0x3E, 0x0C), "f5": (0x3F, 0x03), "f6": (0x40, 0x0B), "f7": (0x41, 0x83),
    "f8": (0x42, 0x0A), "f9": (0x43, 0x01), "f10": (0x44, 0x09), "f11": (0x57, 0x78),
    "f12": (0x58, 0x07), "num lock": (0x45, 0x77), "scroll lock": (0x46, 0x7E),
    "home": (0xE047, 0xE06C), "up": (0xE048, 0xE075), "page up": (0xE049, 0xE07D),
    "left": (0xE04B, 0xE06B), "right": (0xE04D, 0xE074), "end": (0xE04F, 0xE069),
    "down": (0xE050, 0xE072), "page down": (0xE051, 0xE07A), "insert": (0xE052, 0xE070),
    "delete": (0xE053, 0xE071), "right ctrl": (0xE01D, 0xE014), "right alt": (0xE038, 0xE011),
}  # fmt: skip
_CHARACTERS = {" ": "space", "\n": "enter", "\t": "tab", "\b": "backspace", "\x1b": "esc"}
_SHIFTED = dict(zip('!@#$%^&*()_+{}:"~|<>?', "1234567890-=[];'`\\,./", strict=True))


def _codes(key: str, *, down: bool) -> tuple[bytes, bytes]:
    """What a key sends when it is pressed or let go of, in sets 1 and 2."""
    try:
        one, two = _KEYS[key]
    except KeyError:
        raise ValueError(
            f"there is no key {key!r}; there are a to z, 0 to 9, their neighbours by what they"
            f" show, and such as {', '.join(k for k in _KEYS if len(k) > 1)}"
        ) from None
    prefix = b"\xe0" if one > 0xFF else b""
    first, second = one & 0xFF, two & 0xFF
    if down:
        return prefix + bytes([first]), prefix + bytes([second])
    return prefix + bytes([first | 0x80]), prefix + bytes([0xF0, second])


@dataclass(eq=False, kw_only=True)
class I8042(Device):
    """The controller at ports 0x60 and 0x64; interrupt lines 1 and, for the second port, 12."""

    irq: int = 1
    aux_irq: int = 12

    data_port = Ports(0x60, 1)
    command_port = Ports(0x64, 1)
    data = Register(data_port, 0, access="r")  # the output buffer
    written = Register(data_port, 0, access="w")
    status = Register(command_port, 0, access="r", reset=_STATUS_SYSTEM | _STATUS_UNLOCKED,
                      fields={"OBF": 0, "SYS": 2, "A2": 3, "INH": 4, "AUX": 5})  # fmt: skip
    command = Register(command_port, 0, access="w")

    mode = State(lambda: _COMMAND_IRQ | _COMMAND_SYSTEM | _COMMAND_TRANSLATE)  # the command byte
    output_port = State(lambda: 0xCC | _OUTPUT_RESET | _OUTPUT_A20)
    memory = State(lambda: bytearray(32))
    expects = State(int)  # the command whose data byte is to come
    queue = State(lambda: list[tuple[int, int]]())  # (source, byte) for the output buffer
    scanning = State(lambda: True)
    keyboard_expects = State(int)  # the keyboard command whose byte is to come
    leds = State(int)
    scan_set = State(lambda: 2)
    last_sent = State(int)
    keys = State(
        lambda: list[list[bytes]]()
    )  # typed by the host: codes of sets 1 and 2, as lists of bytes

    def connect(self) -> None:
        self._lines = (self.board.irq(self.irq), None, self.board.irq(self.aux_irq))
        self._typed: deque[tuple[bytes, bytes]] = deque()

    # ---- from the host ----

    def press(self, key: str) -> None:
        """Press a key, from any thread. Raises ValueError for a name that no key has."""
        self._send([_codes(key, down=True)])

    def release(self, key: str) -> None:
        """Let a key go."""
        self._send([_codes(key, down=False)])

    def type(self, text: str) -> None:
        """Type text on a US keyboard. Raises ValueError for a character that it has not."""
        sent: list[tuple[bytes, bytes]] = []
        for character in text:
            key = _CHARACTERS.get(character) or _SHIFTED.get(character) or character.lower()
            shift = character in _SHIFTED or character.isupper()
            if shift:
                sent.append(_codes("shift", down=True))
            sent += [_codes(key, down=True), _codes(key, down=False)]
            if shift:
                sent.append(_codes("shift", down=False))
        self._send(sent)

    def _send(self, codes: Iterable[tuple[bytes, bytes]]) -> None:
        self._typed.extend(codes)
        self.board.schedule(self._arrive, 0)

    def _arrive(self) -> None:
        while self._typed:
            self.keys.append(list(self._typed.popleft()))
        self._fill()

    # ---- the output buffer ----

    def _reply(self, source: int, *values: int) -> None:
        # What a command asks for comes before what is typed.
        self.queue += [(source, value) for value in values]
        self._fill()

    def _fill(self) -> None:
        """Put the next byte into the output buffer, if that is empty."""
        if self.status & _STATUS_FULL:
            return
        if not self.queue and self.keys and self.scanning:
            if self.mode & _COMMAND_DISABLED:
                return
            one, two = self.keys.pop(0)
            translated = self.mode & _COMMAND_TRANSLATE or self.scan_set == 1
            self.queue += [(_KEYBOARD, value) for value in (one if translated else two)]
        if not self.queue:
            return
        source, value = self.queue.pop(0)
        self.data = value
        if source == _KEYBOARD:
            self.last_sent = value
        aux = _STATUS_AUX if source == _AUX else 0
        self.status = self.status & ~_STATUS_AUX | _STATUS_FULL | aux
        enabled = self.mode & (_COMMAND_AUX_IRQ if aux else _COMMAND_IRQ)
        line = self._lines[_AUX if aux else _KEYBOARD]
        if enabled and line is not None:
            line.pulse()

    @data.read
    def take(self) -> int:
        value = self.data
        if self.status & _STATUS_FULL:
            self.status &= ~(_STATUS_FULL | _STATUS_AUX)
            for line in self._lines:
                if line is not None:
                    line.set(False)
            self._fill()
        return value

    # ---- the controller ----

    @command.write
    def control(self, value: int) -> None:
        self.status |= _STATUS_COMMAND
        self.expects = 0
        if value & 0xE0 == 0x20:  # 0x20-0x3f: read its memory, of which byte 0 is the mode
            self._reply(_CONTROLLER, self.mode if value == 0x20 else self.memory[value & 31])
        elif value & 0xE0 == 0x60 or value in (0xD1, 0xD2, 0xD3, 0xD4):
            self.expects = value
        elif value == 0xA7:
            self.mode |= _COMMAND_AUX_DISABLED
        elif value == 0xA8:
            self.mode &= ~_COMMAND_AUX_DISABLED
        elif value == 0xA9:  # the second port's clock is stuck: nothing is there
            self._reply(_CONTROLLER, 0x01)
        elif value == 0xAA:
            self._reply(_CONTROLLER, 0x55)
        elif value == 0xAB:
            self._reply(_CONTROLLER, 0x00)
        elif value == 0xAD:
            self.mode |= _COMMAND_DISABLED
        elif value == 0xAE:
            self.mode &= ~_COMMAND_DISABLED
            self._fill()
        elif value == 0xC0:
            self._reply(_CONTROLLER, 0x80)  # the input port: not locked
        elif value == 0xD0:
            self._reply(_CONTROLLER, self.output_port)
        elif value >= 0xF0 and not value & 1:  # pulse: bit 0 low is a reset
            self.board.end("reset")

    @written.write
    def store(self, value: int) -> None:
        command, self.expects = self.expects, 0
        self.status &= ~_STATUS_COMMAND
        if command & 0xE0 == 0x60:
            self.memory[command & 31] = value
            if command == 0x60:
                self.mode = value
                self._fill()
        elif command == 0xD1:
            self.output_port = value | _OUTPUT_A20  # A20 stays on
            if not value & _OUTPUT_RESET:
                self.board.end("reset")
        elif command == 0xD2:
            self._reply(_KEYBOARD, value)
        elif command == 0xD3:
            self._reply(_AUX, value)
        elif command == 0xD4:
            pass  # no mouse: no answer
        else:
            self.mode &= ~_COMMAND_DISABLED
            self._tell_keyboard(value)

    # ---- the keyboard ----

    def _tell_keyboard(self, value: int) -> None:
        command, self.keyboard_expects = self.keyboard_expects, 0
        if command == 0xED:
            self.leds = value & 7
            self._reply(_KEYBOARD, _ACK)
        elif command == 0xF0:
            if value == 0:
                self._reply(_KEYBOARD, _ACK, self._translated(self.scan_set))
            elif value in (1, 2):
                self.scan_set = value
                self._reply(_KEYBOARD, _ACK)
            else:
                self._reply(_KEYBOARD, _RESEND)
        elif command == 0xF3:
            self._reply(_KEYBOARD, _ACK)
        elif value in (0xED, 0xF0, 0xF3):
            self.keyboard_expects = value
            self._reply(_KEYBOARD, _ACK)
        elif value == 0xEE:
            self._reply(_KEYBOARD, _ECHO)
        elif value == 0xF2:
            second = 0x41 if self.mode & _COMMAND_TRANSLATE else 0x83
            self._reply(_KEYBOARD, _ACK, 0xAB, second)
        elif value in (0xF4, 0xF5, 0xF6):
            self.scanning = value != 0xF5
            if value != 0xF4:
                self.scan_set = 2
            self._reply(_KEYBOARD, _ACK)
        elif value == 0xFE:
            self._reply(_KEYBOARD, self.last_sent)
        elif value == 0xFF:
            self.scanning, self.scan_set, self.leds = True, 2, 0
            self._reply(_KEYBOARD, _ACK, _SELF_TEST_PASSED)
        else:
            self._reply(_KEYBOARD, _RESEND)

    def _translated(self, scan_set: int) -> int:
        """The number of a set, as it comes through the translation to set 1."""
        return {1: 0x43, 2: 0x41}[scan_set] if self.mode & _COMMAND_TRANSLATE else scan_set
