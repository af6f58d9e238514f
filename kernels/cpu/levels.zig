//! Which of the CPU levels in this library the machine can run, and the choice among them.
const std = @import("std");
const builtin = @import("builtin");
const options = @import("levels_options");
const types = @import("../abi/types.zig");
const errors = @import("../core/errors.zig");
const os = @import("../core/os.zig");
const kernel_mod = @import("kernel.zig");

const CpuLevel = types.CpuLevel;

pub const Level = struct { name: CpuLevel, table: *const kernel_mod.LevelTable };

/// Best last, as build.zig compiled them.
const compiled = blk: {
    var result: [options.levels.len]Level = undefined;
    for (&result, options.levels) |*level, name| {
        level.* = .{
            .name = std.meta.stringToEnum(CpuLevel, name).?,
            .table = @extern(
                *const kernel_mod.LevelTable,
                .{ .name = "magicdec_level_" ++ name, .visibility = .hidden },
            ),
        };
    }
    break :blk result;
};

/// The wanted level; for `auto` the one named by MAGICDEC_CPU_LEVEL, or else the best that this
/// machine runs.
pub fn choose(wanted: CpuLevel) errors.Error!Level {
    if (wanted != .auto) return named(wanted);
    const text = os.environment("MAGICDEC_CPU_LEVEL") orelse "";
    if (text.len > 0) {
        const level = std.meta.stringToEnum(CpuLevel, text) orelse
            return errors.fail(
                error.InvalidArgument,
                "expected MAGICDEC_CPU_LEVEL to be auto, baseline, v3, v4 or v4_bf16, got \"{s}\"",
                .{text},
            );
        if (level != .auto) return named(level);
    }
    var best = compiled[0];
    for (compiled) |level| {
        if (runs(level.name)) best = level;
    }
    return if (runs(best.name)) best else errors.fail(
        error.Unsupported,
        "expected at least an x86-64-v2 CPU (SSE 4.2, POPCNT)",
        .{},
    );
}

fn named(wanted: CpuLevel) errors.Error!Level {
    for (compiled) |level| {
        if (level.name != wanted) continue;
        if (runs(wanted)) return level;
        return errors.fail(
            error.Unsupported,
            "expected a CPU that runs level {s}; this one does not",
            .{@tagName(wanted)},
        );
    }
    return errors.fail(
        error.Unsupported,
        "expected a level of this library, got {s}, which is for x86-64 only",
        .{@tagName(wanted)},
    );
}

fn runs(level: CpuLevel) bool {
    if (builtin.cpu.arch != .x86_64) return level == .baseline;
    const features = Features.read();
    return switch (level) {
        .auto => false,
        .baseline => features.v2,
        .v3 => features.v3,
        .v4 => features.v4,
        .v4_bf16 => features.v4 and features.bf16,
    };
}

/// What the CPU has and the system saves on a switch of threads. Each level includes the ones
/// before.
const Features = struct {
    v2: bool,
    v3: bool,
    v4: bool,
    bf16: bool,

    fn read() Features {
        const highest = cpuid(0, 0).eax;
        const one = cpuid(1, 0);
        const seven: Leaf = if (highest >= 7) cpuid(7, 0) else .{
            .eax = 0,
            .ebx = 0,
            .ecx = 0,
            .edx = 0,
        };
        const extended = cpuid(0x8000_0001, 0);
        // 9 SSSE3, 13 CMPXCHG16B, 19 SSE4.1, 20 SSE4.2, 23 POPCNT
        const v2 = has(one.ecx, &.{ 9, 13, 19, 20, 23 });
        // 12 FMA, 22 MOVBE, 27 OSXSAVE, 28 AVX, 29 F16C; 3 BMI1, 5 AVX2, 8 BMI2; 5 LZCNT
        const saved = if (has(one.ecx, &.{27})) savedState() else 0;
        const v3 = v2 and has(one.ecx, &.{ 12, 22, 28, 29 }) and has(seven.ebx, &.{ 3, 5, 8 }) and
            has(extended.ecx, &.{5}) and has(saved, &.{ 1, 2 });
        // 16 F, 17 DQ, 28 CD, 30 BW, 31 VL; the system saves 5 masks, 6 and 7 the upper registers
        const v4 = v3 and has(seven.ebx, &.{ 16, 17, 28, 30, 31 }) and has(saved, &.{ 5, 6, 7 });
        const bf16 = v4 and seven.eax >= 1 and has(cpuid(7, 1).eax, &.{5});
        return .{ .v2 = v2, .v3 = v3, .v4 = v4, .bf16 = bf16 };
    }
};

fn has(word: u32, comptime bits: []const u5) bool {
    const mask = comptime blk: {
        var mask: u32 = 0;
        for (bits) |bit| mask |= 1 << bit;
        break :blk mask;
    };
    return word & mask == mask;
}

const Leaf = struct { eax: u32, ebx: u32, ecx: u32, edx: u32 };

fn cpuid(leaf: u32, subleaf: u32) Leaf {
    var eax: u32 = undefined;
    var ebx: u32 = undefined;
    var ecx: u32 = undefined;
    var edx: u32 = undefined;
    asm volatile ("cpuid"
        : [_] "={eax}" (eax),
          [_] "={ebx}" (ebx),
          [_] "={ecx}" (ecx),
          [_] "={edx}" (edx),
        : [_] "{eax}" (leaf),
          [_] "{ecx}" (subleaf),
    );
    return .{ .eax = eax, .ebx = ebx, .ecx = ecx, .edx = edx };
}

/// Low half of XCR0.
fn savedState() u32 {
    return asm volatile ("xgetbv"
        : [_] "={eax}" (-> u32),
        : [_] "{ecx}" (@as(u32, 0)),
        : .{ .edx = true });
}

test "auto takes a level of this machine, and each one can be asked for" {
    const best = try choose(.auto);
    try std.testing.expect(best.table.lanes >= 4);
    for (compiled) |level| {
        if (runs(level.name)) {
            try std.testing.expectEqual(level.table, (try choose(level.name)).table);
        } else {
            try std.testing.expectError(error.Unsupported, choose(level.name));
        }
    }
}
