"use strict";
const config = { responsive: true, displayModeBar: false, showTips: false, doubleClick: false };
const figures = JSON.parse(document.getElementById("figures").textContent);
const drawn = Object.entries(figures).map(([id, figure]) => Plotly.newPlot(id, figure.data, figure.layout, config));
Promise.all(drawn).then(() => document.documentElement.setAttribute("data-drawn", String(drawn.length)));
