# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Videos by PyAV (FFmpeg's libraries): the container is named to it by the first bytes, never guessed.

FFmpeg's own guess would also take playlists, which name other files and addresses to read. One decoding thread, so
that memory is bounded and a frame is the same on every machine.
"""

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .reading import MAX_FRAME_PIXELS, MAX_FRAMES, Source, UnreadableFile, short


# FFmpeg's name of the container that begins with these bytes.
VIDEO_HEADS = (
    (re.compile(rb"....(ftyp|moov|mdat|wide|skip|free|pnot)", re.DOTALL), "mov"),
    (re.compile(rb"RIFF....AVI ", re.DOTALL), "avi"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "matroska"),
    (re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), "asf"),
    (re.compile(rb"\x00\x00\x01\xba"), "mpeg"),
    (re.compile(rb"\x00\x00\x01\xb3"), "mpegvideo"),
    (re.compile(rb"\x47.{187}\x47.{187}\x47", re.DOTALL), "mpegts"),
    (re.compile(rb"FLV\x01"), "flv"),
    (re.compile(rb"OggS"), "ogg"),
)


def video_format(head: bytes) -> str | None:
    """FFmpeg's name of the container that begins with `head`, None if it is no video known here."""
    return next((name for pattern, name in VIDEO_HEADS if pattern.match(head)), None)


def open_video(path: str | Path, file: BinaryIO, container: str) -> Source:
    """Open a video's first stream of pictures; sound is left alone.

    Frames are counted by going through the packets, as containers often don't know their number or lie about it.

    Args:
        container: FFmpeg's name of the format, as `video_format` gives it.

    Raises:
        UnreadableFile: damaged, truncated, too large, or of a codec that the FFmpeg at hand doesn't decode.
    """
    decoder = _Video(Path(path), file, container)
    rate = decoder.rate if decoder.rate and 0 < decoder.rate < 10_000 else None
    return Source(str(path), decoder.count, decoder.frame, "video", None, decoder.count > 1, rate)


class _Video:
    """A decoder that is kept open and goes forward; an earlier frame starts it anew, so that frame k never depends on
    what was asked for before."""

    def __init__(self, path: Path, file: BinaryIO, container: str):
        self.path, self.file, self.format = path, file, container
        self.opened = None
        stream = self._open()
        rate = stream.average_rate
        self.rate = float(rate) if rate else None
        # Of motion JPEG and raw frames each packet is a picture of its own: those not asked for aren't decoded.
        self.intra_only = stream.codec_context.codec.intra_only
        self.count = self._count(stream)

    def _open(self):
        import av

        self.file.seek(0)
        self.opened = self.context = self.packets = None  # the old decoder is freed before the new one takes memory
        try:
            self.opened = av.open(self.file, format=self.format, metadata_errors="replace")
        except MemoryError:
            raise
        except Exception as error:  # av.error.FFmpegError and what a file object may raise
            raise UnreadableFile(self.path, f"no video that can be opened: {short(error)}", "damaged") from error
        # A cover picture in a film's header is a stream of its own.
        streams = [s for s in self.opened.streams.video if "ATTACHED_PIC" not in str(s.disposition).upper()]
        if not streams:
            raise UnreadableFile(self.path, "a recording without pictures", "no-image")
        stream = streams[0]
        if stream.codec_context is None:
            raise UnreadableFile(self.path, "a video of a codec that is not decoded here", "unsupported")
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        self.context, self.packets, self.next_frame, self.waiting = stream.codec_context, self._packets(stream), 0, []
        return stream

    def _check_size(self, width: int, height: int):
        if width * height > MAX_FRAME_PIXELS:
            reason = f"declares {height} x {width} pixels; at most {MAX_FRAME_PIXELS:,} are read"
            raise UnreadableFile(self.path, reason, "too-large")

    def _packets(self, stream):
        """The packets that are shown, up to where the file is damaged; then None, which flushes the decoder."""
        try:
            for packet in self.opened.demux(stream):
                if packet.size:
                    yield packet
        except MemoryError:
            raise
        except Exception:  # cut or damaged from here on: what came before stands
            pass
        yield None

    def _count(self, stream) -> int:
        hides = stream.codec_context.name in ("vp8", "libvpx")
        count = packets = 0
        for packet in self._packets(stream):
            if packet is None:
                break
            packets += 1
            # What an edit list cuts off, and VP8's hidden reference frames (RFC 6386, 9.1), are never shown.
            count += not (packet.is_discard or hides and not bytes(packet)[0] & 0x10)
            if count > MAX_FRAMES:
                raise UnreadableFile(self.path, f"more than {MAX_FRAMES:,} frames", "too-large")
        # A film's own table of samples, unlike an AVI's or Matroska's header, is exact.
        if self.format == "mov" and stream.frames > packets:
            reason = f"truncated: declares {stream.frames:,} frames and has {packets:,}"
            raise UnreadableFile(self.path, reason, "truncated")
        if count == 0:
            raise UnreadableFile(self.path, "a video without a frame", "truncated")
        self._open()
        return count

    def frame(self, index: int) -> np.ndarray:
        try:
            if index < self.next_frame:
                self._open()
            frame = self._decoded(index)
            self._check_size(frame.width, frame.height)
            return frame.to_ndarray(format="rgb24", threads=1)
        except (UnreadableFile, MemoryError):
            raise
        except Exception as error:
            self.next_frame = self.count  # the next call begins anew
            raise UnreadableFile(
                self.path, f"frame {index} cannot be decoded: {short(error)}", "undecodable"
            ) from error

    def _decoded(self, index: int):
        """Go forward to frame `index`, decoding on the way what it is built upon."""
        while True:
            while self.waiting:
                frame, self.next_frame = self.waiting.pop(0), self.next_frame + 1
                if self.next_frame > index:
                    return frame
            packet = next(self.packets, StopIteration)
            if packet is StopIteration:
                self.next_frame = self.count
                raise UnreadableFile(self.path, f"frame {index} is not in what could be decoded", "undecodable")
            if not self.intra_only:
                self.waiting += self._decode(packet)
            elif packet is not None and not packet.is_discard:
                if self.next_frame < index:
                    self.next_frame += 1
                elif not (frames := self._decode(packet)):
                    self.next_frame += 1
                    raise UnreadableFile(self.path, f"frame {index} cannot be decoded", "undecodable")
                else:
                    self.waiting += frames[:1]

    def _decode(self, packet) -> list:
        """A packet's frames; those of a damaged packet are lost, and decoding goes on with the next, as players do."""
        import av

        try:
            return self.context.decode(packet)
        except (av.error.InvalidDataError, EOFError):
            return []
