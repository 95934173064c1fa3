"use strict";

// A number's cell says what to sort by, a word's is sorted by as it stands; one with an empty order stays last.
function key(cell) {
  const order = cell.dataset.order;
  if (order === undefined) {
    return cell.textContent.toLowerCase();
  }
  return order === "" ? undefined : Number(order);
}

function compare(a, b, direction) {
  if (a === undefined || b === undefined) {
    return (a === undefined) - (b === undefined);
  }
  const numbers = typeof a === "number" && typeof b === "number";
  return direction * (numbers ? a - b : String(a).localeCompare(String(b)));
}

function sort(heading) {
  const headings = [...heading.parentElement.children];
  const column = headings.indexOf(heading);
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  const body = heading.closest("table").tBodies[0];
  const rows = [...body.rows];
  const keys = new Map(rows.map((row) => [row, key(row.cells[column])]));
  rows.sort((one, other) => compare(keys.get(one), keys.get(other), ascending ? 1 : -1));
  body.append(...rows);
  headings.forEach((other) => other.setAttribute("aria-sort", "none"));
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}

// Details are kept beside their table: the words of all, and of each the runs of words that it consists of.
function open(details) {
  const box = details.closest(".wide");
  const { words, texts } = JSON.parse(box.querySelector("script").textContent);
  const runs = texts[details.dataset.text];
  const pre = document.createElement("pre");
  for (let place = 0; place < runs.length; place += 2) {
    pre.append(words.slice(runs[place], runs[place] + runs[place + 1]).join(""));
  }
  details.append(pre);
}

document.querySelectorAll("table").forEach((table) => {
  table.querySelectorAll("details").forEach((details, place) => { details.dataset.text = place; });
});

// A table that is larger than its box says so: some systems hide scroll bars.
const watch = new ResizeObserver((entries) => {
  entries.forEach(({ target }) => {
    target.classList.toggle("sideways", target.scrollWidth > target.clientWidth + 1);
    target.classList.toggle("down", target.scrollHeight > target.clientHeight + 1);
  });
});
document.querySelectorAll("section > .wide").forEach((box) => watch.observe(box));

document.addEventListener("click", (event) => {
  const heading = event.target.closest("th");
  const details = event.target.closest("summary")?.parentElement;
  if (heading) {
    sort(heading);
  } else if (details && !details.querySelector("pre")) {
    open(details);
  }
});
