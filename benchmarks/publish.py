"""The dashboard: asv's pages of the results, which open without a network. ``python -m benchmarks.publish [FOLDER]``.

Asv's page loads its libraries from content delivery networks. Here they lie beside it, from npm; where that is missing
or has no registry, the page is left as it is.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "blueimp-md5@2.19.0", "bootstrap@3.1.1", "flot@0.8.3", "flot-orderbars@1.0.0", "jquery@3.3.1",
    "stupid-table-plugin@1.1.3",
)  # fmt: skip
LIBRARIES = {  # a file that the page loads -> where it is among the packages
    "bootstrap.min.css": "bootstrap/dist/css/bootstrap.min.css",
    "bootstrap.min.js": "bootstrap/dist/js/bootstrap.min.js",
    "jquery-3.3.1.min.js": "jquery/dist/jquery.min.js",
    "jquery.flot.categories.min.js": "flot/jquery.flot.categories.js",
    "jquery.flot.min.js": "flot/jquery.flot.js",
    "jquery.flot.orderBars.js": "flot-orderbars/js/jquery.flot.orderBars.js",
    "jquery.flot.selection.min.js": "flot/jquery.flot.selection.js",
    "jquery.flot.time.min.js": "flot/jquery.flot.time.js",
    "md5.min.js": "blueimp-md5/js/md5.min.js",
    "stupidtable.min.js": "stupid-table-plugin/stupidtable.min.js",
}
LOADED = re.compile(r'(src|href)="https://[^"]*/([^"/]+)" integrity="[^"]*"[^>]*>')


def main(arguments=None):
    folder, *_ = (sys.argv[1:] if arguments is None else arguments) or [ROOT / ".asv/html"]
    publish(Path(folder).resolve())
    packages = ROOT / ".asv/npm"
    if install(packages):
        own(Path(folder).resolve(), packages / "node_modules")
    else:
        print("The pages load their libraries from the network: npm could not install them", file=sys.stderr)


def publish(folder):
    """All results of the benchmarks as they are here; what has none is left out, as the page would look for it."""
    from asv.benchmarks import Benchmarks
    from asv.commands.publish import Publish
    from asv.config import Config
    from asv.console import log
    from asv.environment import get_environments
    from asv.repo import get_repo
    from asv.results import iter_results

    os.chdir(ROOT)  # what the configuration's paths start from
    log.enable()
    config = Config.load("asv.conf.json")
    config.html_dir = str(folder)
    here = list(get_environments(config, ["existing:same"]))
    found = Benchmarks.discover(config, get_repo(config), here, ["HEAD"])
    measured = {name for result in iter_results(config.results_dir) for name in result.get_result_keys(found)}
    Benchmarks(config, [found[name] for name in sorted(measured)]).save()
    Publish.run(config)


def install(folder):
    """Whether all packages are in this folder."""
    if not shutil.which("npm"):
        return False
    options = ("--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--fetch-retries=0")
    return subprocess.run(["npm", "install", *options, *PACKAGES]).returncode == 0


def own(folder, packages):
    """Let the page load its libraries from a folder beside it; bootstrap's style looks for fonts beside itself."""

    def local(match):
        path = LIBRARIES[match[2]]
        (folder / "lib" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(packages / path, folder / "lib" / path)
        return f'{match[1]}="lib/{path}">'

    page = folder / "index.html"
    page.write_text(LOADED.sub(local, page.read_text()))
    shutil.copytree(packages / "bootstrap/dist/fonts", folder / "lib/bootstrap/dist/fonts")


if __name__ == "__main__":
    main()
