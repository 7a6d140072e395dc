"""Copies the page's libraries from node_modules to the folder that the gateway serves.

`make page-libraries` runs it after package.json changes a version. `libraries.json`, beside the
files, has the package, the version and the SHA-256 of each.
"""

import hashlib
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = ROOT / "node_modules"
VENDOR = ROOT / "gateway" / "pixtral_gateway" / "api" / "playground" / "static" / "vendor"
MANIFEST = VENDOR / "libraries.json"

# The languages with syntax colours. The page loads each language's file on first use.
LANGUAGES = (
    *("bash", "c", "cpp", "csharp", "css", "diff", "dockerfile", "go", "ini", "java"),
    *("javascript", "json", "kotlin", "latex", "lua", "markdown", "php", "python", "ruby"),
    *("rust", "sql", "swift", "typescript", "xml", "yaml"),
)
# Packages that are bundled in markdown-it's file.
INSIDE_MARKDOWN_IT = ("entities", "linkify-it", "mdurl", "punycode.js", "uc.micro")
# For pictures in JBIG2 and JPEG 2000, each read when it is met. They are JavaScript, because the
# page's policy allows no WebAssembly. pdf.js knows them by these names.
PDF_DECODERS = ("jbig2", "openjpeg")
PDF_DECODER_LICENCES = (
    *("LICENSE_JBIG2", "LICENSE_OPENJPEG", "LICENSE_PDFJS_JBIG2", "LICENSE_PDFJS_OPENJPEG"),
)


def sources() -> dict[str, tuple[str, str]]:
    """For each file below `vendor`: its package, and its path in that package."""
    found = {
        "markdown-it/markdown-it.js": ("markdown-it", "dist/browser/markdown-it.esm.min.mjs"),
        "markdown-it/LICENSE.txt": ("markdown-it", "LICENSE"),
        "highlight/core.js": ("@highlightjs/cdn-assets", "es/core.min.js"),
        "highlight/LICENSE.txt": ("@highlightjs/cdn-assets", "LICENSE"),
        "katex/katex.js": ("katex", "dist/katex.min.js"),
        "katex/katex.css": ("katex", "dist/katex.min.css"),
        "katex/LICENSE.txt": ("katex", "LICENSE"),
        "pdf/pdf.js": ("pdfjs-dist", "build/pdf.min.mjs"),
        "pdf/worker.js": ("pdfjs-dist", "build/pdf.worker.min.mjs"),
        "pdf/LICENSE.txt": ("pdfjs-dist", "LICENSE"),
    }
    for name in INSIDE_MARKDOWN_IT:
        (licence,) = (MODULES / name).glob("LICENSE*")
        found[f"markdown-it/LICENSE-{name}.txt"] = (name, licence.name)
    for name in PDF_DECODERS:
        found[f"pdf/decoders/{name}_nowasm_fallback.js"] = (
            "pdfjs-dist",
            f"wasm/{name}_nowasm_fallback.js",
        )
    for name in PDF_DECODER_LICENCES:
        found[f"pdf/decoders/{name}.txt"] = ("pdfjs-dist", f"wasm/{name}")
    for name in LANGUAGES:
        path = f"es/languages/{name}.min.js"
        found[f"highlight/languages/{name}.js"] = ("@highlightjs/cdn-assets", path)
    for font in sorted((MODULES / "katex" / "dist" / "fonts").glob("*.woff2")):
        found[f"katex/fonts/{font.name}"] = ("katex", f"dist/fonts/{font.name}")
    return found


def version_of(package: str) -> str:
    told = json.loads((MODULES / package / "package.json").read_text("utf-8"))
    return f"{package}@{told['version']}"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    shutil.rmtree(VENDOR, ignore_errors=True)
    manifest = {}
    for name, (package, path) in sorted(sources().items()):
        data = (MODULES / package / path).read_bytes()
        target = VENDOR / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        manifest[name] = {"from": version_of(package), "path": path, "sha256": digest(data)}
    MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
