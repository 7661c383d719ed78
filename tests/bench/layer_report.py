#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of the layer on a GPU, from files that `gpu_layer bench` and dense_peer.py wrote.

Prints the tables of docs/performance-h200.md as Markdown. With a folder it also writes figures there: for each model that
peers were measured for its time over the tokens, the floor and the peers; for all models the share of the floor's rate. Each
says the source, the CUDA version of the driver and the day of the first file. The floor is the larger of bytes / read limit and
FLOPs / best rate of cuBLAS, both from the same files.

usage: layer_report.py [--figures DIR] FILE...
"""
import json
import math
import os
import sys
import time

# Microseconds on one card in the run of source 842f3ad, 2026-11-23. What DeepGEMM and grouped_mm lack of a layer is added as
# bytes at 4.3 TB/s.
PEERS_NAME = "peers: run of 842f3ad"
PEERS = {
    "Mixtral-8x7B": {"Triton without alignment": {1: 182, 8: 615, 32: 665, 64: 669, 128: 683, 256: 757, 1024: 1604, 4096: 5093,
                                                  8192: 9893},
                     "DeepGEMM, and the rest": {1024: 1611, 4096: 4851, 8192: 9127},
                     "grouped_mm, and the rest": {1024: 1857, 4096: 5023, 8192: 9458}},
    "Qwen3-30B-A3B": {"Triton without alignment": {1: 30.4, 8: 129, 32: 270, 64: 297, 128: 309, 256: 324, 1024: 389, 4096: 818,
                                                   8192: 1465},
                      "DeepGEMM, and the rest": {4096: 817, 8192: 1365},
                      "grouped_mm, and the rest": {4096: 903, 8192: 1489}},
}
STAGES = ("sort", "gemm1", "gemm2", "combine")
DEFAULT_FLOP_PER_US = 700e6  # where no file has cuBLAS's times
COLORS = ("#0b6e4f", "#555555", "#c2410c", "#1d4ed8", "#a21caf", "#b45309", "#0e7490", "#4d7c0f")


class Report:
    """What the files hold together."""

    def __init__(self, paths):
        records = [record for path in paths for record in json.load(open(path, encoding="utf-8"))]
        self.device = next(record for record in records if "read_tbps" in record)
        self.date = time.strftime("%Y-%m-%d", time.gmtime(os.path.getmtime(paths[0])))
        self.read_per_us = 1e6 * max(record["read_tbps"] for record in records if "read_tbps" in record)
        self.torch = {kind: {(record["model"], record["tokens"]): record for record in records if record.get("set") == kind}
                      for kind in ("dense", "grouped")}
        self.dense = self.torch["dense"]
        self.flop_per_us = max([record["flops"] / record["us"] for record in self.dense.values()], default=DEFAULT_FLOP_PER_US)
        self.results = {}
        for record in records:
            if "layer_us" in record:
                self.results.setdefault((record["set"], record["model"]), {})[record["tokens"]] = record

    def models(self, kind):
        return [model for name, model in self.results if name == kind]

    def provenance(self):
        return "source %s, driver %s, %s" % (self.device["source"], self.device["driver"], self.date)

    def floor(self, record):
        return max(record["bytes"] / self.read_per_us, record["flops"] / self.flop_per_us)


def number(value):
    return "%.1f" % value if value < 100 else "%.0f" % value


def print_row(name, cells):
    print("| %s | %s |" % (name, " | ".join(cells)))


def print_head(name, counts):
    print_row(name, ["%d" % count for count in counts])
    print("|---|%s" % ("--:|" * len(counts)))


def shape(record):
    return "%d, %d, %d, %d" % (record["experts"], record["top_k"], record["hidden"], record["inter"])


def gemm_rate(record, stage):
    """TB/s of weights and TFLOP/s of a GEMM alone."""
    matrices = 2.0 if stage == "gemm1" else 1.0
    product = matrices * record["hidden"] * record["inter"]
    us = record[stage + "_us"]
    rows = record["tokens"] * record["top_k"]
    return 2.0 * record["active_experts"] * product / us / 1e6, 2.0 * rows * product / us / 1e6


def print_model(report, model):
    rows = report.results["layer", model]
    counts = sorted(rows)
    records = [rows[count] for count in counts]
    print_head("%s (%s)" % (model, shape(records[0])), counts)
    print_row("us", [number(record["layer_us"]) for record in records])
    print_row("10th to 90th", ["%s-%s" % (number(r["layer_low_us"]), number(r["layer_high_us"])) for r in records])
    print_row("experts hit", [number(record["active_experts"]) for record in records])
    print_row("TB/s", ["%.2f" % (record["bytes"] / record["layer_us"] / 1e6) for record in records])
    print_row("TFLOP/s", [number(record["flops"] / record["layer_us"] / 1e6) for record in records])
    print_row("floor, us", [number(report.floor(record)) for record in records])
    print_row("of the floor", ["%.0f %%" % (100 * report.floor(record) / record["layer_us"]) for record in records])
    for kind, name in (("dense", "cuBLAS, dense of the same FLOPs, us"), ("grouped", "torch's grouped_mm, both GEMMs, us")):
        times = report.torch[kind]
        if any((model, count) in times for count in counts):
            print_row(name, [number(times[model, count]["us"]) if (model, count) in times else "" for count in counts])
    for stage in STAGES:
        print_row("alone: " + stage, [number(record[stage + "_us"]) for record in records])
    for stage in ("gemm1", "gemm2"):
        print_row("grouped_gemm alone: %s, TB/s" % stage, ["%.2f" % gemm_rate(record, stage)[0] for record in records])
        print_row("grouped_gemm alone: %s, TFLOP/s" % stage, [number(gemm_rate(record, stage)[1]) for record in records])
    print_row("host, us per call", ["%.1f" % record["host_us"] for record in records])
    print()


def print_variants(report, model):
    base = report.results["layer", model]
    counts = sorted(base)
    print_head(model + ", us (layer: bf16, uniform, sustained)", counts)
    for kind in ("layer", "zipf", "fp16", "burst", "transposed", "paired"):
        rows = report.results.get((kind, model), {})
        if rows:
            print_row(kind, [number(rows[count]["layer_us"]) if count in rows else "" for count in counts])
    zipf = report.results.get(("zipf", model), {})
    if zipf:
        print_row("experts hit (zipf)", [number(zipf[count]["active_experts"]) if count in zipf else "" for count in counts])
        print_row("of the floor (zipf)", ["%.0f %%" % (100 * report.floor(zipf[count]) / zipf[count]["layer_us"])
                                          if count in zipf else "" for count in counts])
    print()


def print_others(report, models):
    counts = sorted(report.results["layer", models[0]])
    print_head("us, and the share of the floor's rate (E, k, H, I)", counts)
    for model in models:
        rows = report.results["layer", model]
        print_row("%s (%s)" % (model, shape(rows[counts[0]])),
                  ["%s, %.0f %%" % (number(rows[count]["layer_us"]), 100 * report.floor(rows[count]) / rows[count]["layer_us"])
                   if count in rows else "" for count in counts])
    print()


class Plot:
    """Lines over logarithmic tokens, as SVG text."""

    WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 60, 200, 34, 44

    def __init__(self, title, y_name, x_values, y_values, is_y_logarithmic):
        self.is_y_logarithmic = is_y_logarithmic
        self.x_low, self.x_high = math.log(min(x_values)), math.log(max(x_values))
        self.y_low, self.y_high = (self.scale(min(y_values) / 1.2), self.scale(max(y_values) * 1.1)) if is_y_logarithmic else (
            0.0, max(y_values) * 1.05)
        self.labels = []
        self.parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">'
                      % (self.WIDTH, self.HEIGHT), '<rect width="100%" height="100%" fill="white"/>']
        self.text(self.LEFT, 20, title, "#111", "start", 14)
        self.text((self.LEFT + self.WIDTH - self.RIGHT) / 2, self.HEIGHT - 8, "tokens", "#333", "middle")
        self.text(self.LEFT, self.TOP - 2, y_name, "#333", "end", 11)
        for value in x_values:
            x = self.x(value)
            self.line([(x, self.TOP), (x, self.HEIGHT - self.BOTTOM)], "#e5e5e5", 1)
            self.text(x, self.HEIGHT - self.BOTTOM + 16, "%d" % value, "#333", "middle", 11)
        for value in self.y_ticks():
            y = self.y(value)
            self.line([(self.LEFT, y), (self.WIDTH - self.RIGHT, y)], "#e5e5e5", 1)
            self.text(self.LEFT - 6, y + 4, "%d" % value if value >= 1 else "%g" % value, "#333", "end", 11)

    def scale(self, value):
        return math.log(value) if self.is_y_logarithmic else value

    def y_ticks(self):
        if not self.is_y_logarithmic:
            return [20 * i for i in range(int(self.y_high // 20) + 1)]
        values = [step * 10 ** power for power in range(-1, 7) for step in (1, 2, 5)]
        return [value for value in values if self.y_low <= math.log(value) <= self.y_high]

    def x(self, value):
        return self.LEFT + (math.log(value) - self.x_low) / (self.x_high - self.x_low) * (self.WIDTH - self.RIGHT - self.LEFT)

    def y(self, value):
        share = (self.scale(value) - self.y_low) / (self.y_high - self.y_low)
        return self.HEIGHT - self.BOTTOM - share * (self.HEIGHT - self.BOTTOM - self.TOP)

    def text(self, x, y, text, color, anchor, size=12):
        escaped = text.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append('<text x="%.1f" y="%.1f" fill="%s" text-anchor="%s" font-size="%d">%s</text>'
                          % (x, y, color, anchor, size, escaped))

    def line(self, points, color, width, dash=""):
        self.parts.append('<polyline fill="none" stroke="%s" stroke-width="%g"%s points="%s"/>' % (
            color, width, ' stroke-dasharray="%s"' % dash if dash else "", " ".join("%.1f,%.1f" % point for point in points)))

    def series(self, name, values, color, dash="", width=2):
        points = [(self.x(count), self.y(value)) for count, value in sorted(values.items())]
        self.line(points, color, width, dash)
        if not dash:
            self.parts += ['<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' % (x, y, color) for x, y in points]
        self.labels.append([points[-1][1], name, color])

    def caption(self, text):
        self.text(self.WIDTH - 8, self.HEIGHT - 8, text, "#555", "end", 10)

    def write(self, path):
        """Names stand at the ends of the lines, apart from each other."""
        last = -100.0
        for y, name, color in sorted(self.labels):
            last = max(y + 4, last + 15)
            self.text(self.WIDTH - self.RIGHT + 8, last, name, color, "start")
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(self.parts + ["</svg>"]) + "\n")


def draw_model(report, model, path):
    rows = report.results["layer", model]
    ours = {count: record["layer_us"] for count, record in rows.items()}
    floor = {count: report.floor(record) for count, record in rows.items()}
    peers = PEERS.get(model, {})
    values = list(ours.values()) + list(floor.values()) + [us for peer in peers.values() for us in peer.values()]
    plot = Plot("%s (%s), bf16, ids given, on %s" % (model, shape(next(iter(rows.values()))), report.device["device"]), "us",
                sorted(ours), values, True)
    for index, (name, times) in enumerate(peers.items()):
        plot.series(name, times, COLORS[2 + index], width=1.5)
    plot.series("floor", floor, COLORS[1], dash="5 4")
    plot.series("this plugin", ours, COLORS[0], width=2.5)
    plot.caption(report.provenance() + ("; " + PEERS_NAME if peers else ""))
    plot.write(path)


def draw_shares(report, models, path):
    shares = {model: {count: 100 * report.floor(record) / record["layer_us"]
                      for count, record in report.results["layer", model].items()} for model in models}
    counts = sorted({count for model in models for count in shares[model]})
    plot = Plot("Share of the floor's rate, %", "%", counts, [100.0], False)
    for index, model in enumerate(models):
        plot.series(model, shares[model], COLORS[index % len(COLORS)])
    plot.caption(report.provenance())
    plot.write(path)


def main():
    args = sys.argv[1:]
    folder = None
    if len(args) >= 2 and args[0] == "--figures":
        folder, args = args[1], args[2:]
    if not args or any(arg.startswith("-") for arg in args):
        sys.exit(__doc__)
    report = Report(args)
    models = report.models("layer")
    compared = [model for model in models if any(r["peer_us"] > 0 for r in report.results["layer", model].values())]
    others = [model for model in models if model not in compared]
    print("%s, driver %s, source `%s`; read limit %.2f TB/s, cuBLAS at best %.0f TFLOP/s, an empty launch %.1f us of the host.\n" % (
        report.device["device"], report.device["driver"], report.device["source"], report.read_per_us / 1e6,
        report.flop_per_us / 1e6, report.device["launch_us"]))
    for model in compared:
        print_model(report, model)
    if others:
        print_others(report, others)
    for model in compared:
        print_variants(report, model)
    if folder is not None:
        for model in compared:
            draw_model(report, model, "%s/layer-%s.svg" % (folder, model.lower()))
        draw_shares(report, models, folder + "/layer-floor.svg")


if __name__ == "__main__":
    main()
