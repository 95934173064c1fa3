"use strict";

// Rows are ordered by data-order, as numbers where both are; a cell without one stays last either way.
function compare(a, b, direction) {
  if (a === undefined || b === undefined) {
    return (a === undefined) - (b === undefined);
  }
  const x = Number(a), y = Number(b);
  const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  return direction * order;
}

function sort(heading) {
  const headings = [...heading.parentElement.children];
  const column = headings.indexOf(heading);
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  const body = heading.closest("table").tBodies[0];
  const rows = [...body.rows];
  const key = (row) => row.cells[column].dataset.order;
  rows.sort((one, other) => compare(key(one), key(other), ascending ? 1 : -1));
  body.append(...rows);
  headings.forEach((other) => other.setAttribute("aria-sort", "none"));
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}

document.addEventListener("click", (event) => {
  const heading = event.target.closest("th");
  if (heading) {
    sort(heading);
  }
});
