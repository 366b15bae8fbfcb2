"""What is known of a restored scene before its pixels, and which layers its files hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from affine import Affine

from cloudjob.errors import ConfigError
from cloudjob.names import ProductName
from cloudjob.pixels import BANDS, EMPTY_DN, NO_DATA, OFFSET, SCALE
from cloudjob.restoration.blend import BLENDED_EDGE, OBSERVED, RECONSTRUCTED

FLAGS = {OBSERVED: "observed", RECONSTRUCTED: "reconstructed", BLENDED_EDGE: "blended_edge", NO_DATA: "no_data"}
_DATA_SPACE = "https://stac.dataspace.copernicus.eu/v1/collections/sentinel-2-l2a/items"


@dataclass(frozen=True)
class Layer:
    """One band of the files: its name, its type, what no data is (None: there is none), value = DN * scale + offset."""

    name: str
    dtype: str
    empty: int | None
    scale: float
    offset: float


@dataclass(frozen=True)
class Header:
    """One restored scene but for its pixels."""

    name: str  # of the product: the files' title
    shape: tuple[int, int]  # rows, columns
    crs: str | None  # "EPSG:32605" or WKT; None where nobody knows
    transform: Affine  # from (column, row) to the CRS, of pixels' corners
    sensing_time: str | None  # ISO 8601, UTC; None where nobody knows
    attributes: Mapping[str, str | int | float]  # source_products, checkpoint, configuration, seed, sampler, ...
    uncertainty: bool = False  # whether there is one: the deviation over members
    sources: Mapping[str, str] = field(default_factory=dict)  # links to the products that it was made from, by name
    collection: str | None = None  # where its STAC collection lies, from its folder; None: it is in none
    origin: str = "Copernicus Sentinel data"  # whose data they are

    @property
    def attribution(self) -> str:
        return f"Contains modified {self.origin} {(self.sensing_time or '')[:4]}".rstrip()

    @property
    def lineage(self) -> str:
        """How the scene came to be, in words."""
        made = "ground under clouds restored by a diffusion model (cloudjob {cloudjob_version}), from {source_products}"
        return made.format(**self.attributes) + "; where no cloud was, the pixels of the first"

    @property
    def platform(self) -> str | None:
        """The satellite as STAC names it; None where the name of the scene does not tell."""
        try:
            return f"sentinel-{ProductName.parse(self.name).satellite[1:].lower()}"
        except ConfigError:
            return None

    @property
    def layers(self) -> list[Layer]:
        """The layers of the GeoTIFF in order, and the views of them."""
        found = [Layer(band, "uint16", EMPTY_DN, SCALE, OFFSET) for band in BANDS]
        found.append(Layer("reconstructed", "uint8", NO_DATA, 1.0, 0.0))
        if self.uncertainty:
            found += [Layer(f"uncertainty_{band}", "uint16", None, SCALE, 0.0) for band in BANDS]
        return found


def data_space(product: str) -> str:
    """Where the Copernicus Data Space has the STAC item of a product."""
    return f"{_DATA_SPACE}/{product}"
