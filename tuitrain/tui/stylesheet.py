"""The styles of the app, each read once for the colours in force; knows no screen and no colour."""

from textual.css.stylesheet import Stylesheet


class LastingStylesheet(Stylesheet):
    """Textual's, without its habit of reading everything again, twice, for each new screen: 20 ms each time."""

    def __init__(self, *, variables: dict[str, str]) -> None:
        super().__init__(variables=variables)
        self._colours = variables

    def set_variables(self, variables: dict[str, str]) -> None:
        if variables != self._colours:
            self._colours = variables
            super().set_variables(variables)

    def reparse(self) -> None:
        self.parse()  # what was read with these colours is kept, and only new styles are read
